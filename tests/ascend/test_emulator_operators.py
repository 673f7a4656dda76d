# SPDX-License-Identifier: Apache-2.0
"""Every NPU operator that has a kernel, called as vllm-ascend does, on tensors of the NPU.

The kernels' own formulas are tested in tests/emulator; here each call goes through torch_npu's
Python functions, the chip's table, the Meta kernel and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from npu_emulator.compressed_weights import encode

pytestmark = pytest.mark.ascend
FIA = "npu::npu_fused_infer_attention_score"
WORKSPACE = "npu::_npu_fused_infer_attention_score_get_max_workspace"
HALF, INT = torch.float16, torch.int32
Call = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def table() -> Mapping[str, Any]:
    from npu_emulator import emulator

    return emulator.install().table


def is_310p() -> bool:
    from npu_emulator.settings import current_chip

    return current_chip().device_type == "_310P"


def random(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=INT)


def cache(blocks: int = 4) -> Tensor:
    """Two heads of 128 in blocks of 128 tokens, in the chip's order."""
    return random(blocks, 16, 128, 16) if is_310p() else random(blocks, 128, 2, 128)


def mask(dtype: torch.dtype) -> Tensor:
    """The compressed causal mask: what it hides is 1, or far below 0."""
    return torch.ones(2048, 2048).triu_(1).mul_(1 if dtype == torch.int8 else -10000).to(dtype)


def fia(**more: Any) -> Call:
    return {
        "query": random(6, 4, 128),
        "key": random(8, 128, 256),
        "value": random(8, 128, 256),
        "atten_mask": mask(torch.int8),
        "actual_seq_lengths": [4, 6],
        "actual_seq_lengths_kv": [40, 90],
        "block_table": integers(1, 0, 3, 2).view(2, 2),
        "num_heads": 4,
        "num_key_value_heads": 2,
        "scale": 0.1,
        "input_layout": "TND",
        "sparse_mode": 3,
        "block_size": 128,
        **more,
    }


def paged(**more: Any) -> Call:
    return {
        "query": random(3, 4, 128),
        "key_cache": cache(),
        "value_cache": cache(),
        "num_kv_heads": 2,
        "num_heads": 4,
        "scale_value": 0.1,
        "block_table": integers(2, 0, 3).view(3, 1),
        "context_lens": integers(100, 7, 1),
        "out": torch.zeros(3, 4, 128, dtype=HALF),
        **more,
    }


def chunks(**more: Any) -> Call:
    lengths = {"seq_len": integers(1, 1, 1)}
    return paged(mask=mask(HALF), **lengths, **more)


def flash(**more: Any) -> Call:
    return {
        "query": random(48, 4, 128),
        "key": random(48, 2, 128),
        "value": random(48, 2, 128),
        "seq_len": integers(30, 18),
        "scale_value": 0.1,
        "num_heads": 4,
        "num_kv_heads": 2,
        "out": torch.zeros(48, 4, 128, dtype=HALF),
        **more,
    }


def sliced_mask() -> Tensor:
    """In the order of FRACTAL_NZ."""
    return mask(HALF).view(1, 2048, 128, 16).transpose(1, 2).contiguous()


def rope(**more: Any) -> Call:
    return {
        "query": random(1, 5, 4, 128),
        "key": random(1, 5, 2, 128),
        "cos": random(1, 5, 1, 128),
        "sin": random(1, 5, 1, 128),
        **more,
    }


def added(**more: Any) -> Call:
    return {"x1": random(3, 64), "x2": random(3, 64), "gamma": random(64), **more}


def quant_matmul() -> Call:
    bytes_of = torch.arange(-64, 64, dtype=torch.int8)
    return {
        "x1": bytes_of.repeat(3, 2),
        "x2": bytes_of.repeat(256, 1),
        "scale": random(128, dtype=torch.float32).abs() / 1000,
        "bias": torch.arange(128, dtype=INT),
        "output_dtype": HALF,
    }


def compressed_matmul() -> Call:
    fractals = torch.arange(12 * 8 * 512).remainder(7).to(torch.int8).view(12, 8, 16, 32).numpy()
    stream, index = encode(fractals)
    return {
        "x1": torch.arange(-64, 64, dtype=torch.int8).repeat(3, 3),
        "x2": torch.from_numpy(stream.copy()),
        "compress_index": torch.from_numpy(index),
        "bias": torch.arange(128, dtype=INT)[None],
        "scale": torch.full((1, 128), 0x3A800000).to(torch.uint64),  # 2 ** -10
    }


CALLS: dict[str, Callable[[], Call]] = {
    FIA: fia,
    FIA + ".out": lambda: fia(
        workspace=torch.zeros(1024, dtype=torch.uint8),
        out=[torch.zeros(6, 4, 128, dtype=HALF), torch.zeros(1)],
    ),
    WORKSPACE: fia,
    "atb::_npu_flash_attention": lambda: flash(mask=mask(HALF)[:128, :128].contiguous()),
    "atb::_npu_flash_attention_v3": lambda: flash(mask=sliced_mask(), mask_type=3),
    "atb::_npu_flash_attention_unpad": flash,
    "atb::_npu_flash_attention_unpad_v2": lambda: flash(kernel_type=0),
    "atb::_npu_paged_attention": paged,
    "atb::_npu_paged_attention_get_workspace": paged,
    "atb::_npu_paged_attention_splitfuse": chunks,
    "atb::_npu_paged_attention_splitfuse_v2": lambda: chunks(mask_type=5),
    "atb::_npu_reshape_and_cache": lambda: {
        "key": random(3, 2, 128),
        "value": random(3, 2, 128),
        "key_cache": cache(),
        "value_cache": cache(),
        "slot_indices": integers(130, 7, -1),
    },
    "atb::_npu_matmul_add_fp32": lambda: {
        "x": random(5, 16),
        "weight": random(5, 32),
        "C": random(16, 32, dtype=torch.float32),
    },
    "atb::_npu_rotary_embedding": lambda: {
        "positions": torch.tensor([0, 3, 9]),
        "query": random(3, 256),
        "key": random(3, 128),
        "head_size": 128,
        "cos_sin_cache": random(16, 128),
        "is_neox_style": True,
    },
    "npu::npu_apply_rotary_pos_emb": rope,
    "npu::npu_rotary_mul": lambda: {
        "input": random(1, 5, 4, 128),
        "r1": random(1, 5, 1, 128),
        "r2": random(1, 5, 1, 128),
    },
    "npu::npu_mrope": lambda: {
        "positions": torch.arange(15).view(3, 5),
        "query": random(5, 256),
        "key": random(5, 128),
        "cos_sin_cache": random(16, 64),
        "head_size": 128,
        "mrope_section": [8, 12, 12],
        "rotary_mode": "half",
    },
    "npu::npu_rms_norm": lambda: {"input": random(3, 64), "gamma": random(64)},
    "npu::npu_add_rms_norm": added,
    "_C_ascend::npu_add_rms_norm_bias": lambda: added(beta=random(64)),
    "npu::npu_add_rms_norm_quant": lambda: added(
        scales1=random(64, dtype=torch.float32).abs() + 1, zero_points1=torch.arange(64, dtype=INT)
    ),
    "npu::npu_add_rms_norm_dynamic_quant": lambda: added(output_mask=[True, False]),
    "npu::npu_swiglu": lambda: {"input": random(3, 128)},
    "npu::npu_format_cast": lambda: {"input": random(64, 32), "acl_format": 29},
    "npu::npu_prefetch": lambda: {"input": random(4), "dependency": None, "max_size": 8},
    "npu::npu_quantize": lambda: {
        "input": random(3, 64),
        "scales": torch.tensor([0.1]),
        "zero_points": integers(3),
        "dtype": torch.qint8,
        "axis": -1,
    },
    "npu::npu_dynamic_quant": lambda: {"input": random(3, 64)},
    "npu::npu_quant_matmul": quant_matmul,
    "npu::npu_matmul_compress_dequant": compressed_matmul,
    "npu::npu_top_k_top_p": lambda: {
        "logits": random(2, 50),
        "p": torch.tensor([0.9, 0.5], dtype=HALF),
        "k": integers(10, 20),
    },
}
ON_HOST = {"seq_len"}
TYPE_NUMBERS = {HALF: 5, torch.qint8: 12}


def api(name: str) -> Callable[..., Any]:
    """torch_npu's function of an operator, or torch's of vllm-ascend's own."""
    import torch_npu

    namespace, _, base = name.partition("::")
    if namespace == "_C_ascend":
        return getattr(torch.ops._C_ascend, base)
    function = getattr(torch_npu, base.partition(".")[0])
    return function.out if base.endswith(".out") else function


def on(value: Any, device: str) -> Any:
    if isinstance(value, list):
        return [on(part, device) for part in value]
    return value.clone().to(device) if isinstance(value, Tensor) else value


def tensors(value: Any) -> list[Tensor]:
    parts = value if isinstance(value, (list, tuple)) else [value]
    return [part for part in parts if isinstance(part, Tensor)]


def arguments_on(call: Call, device: str) -> Call:
    """Copies there, of what the operators do not read on the host."""
    return {k: on(v, "cpu" if k in ON_HOST else device) for k, v in call.items()}


@pytest.mark.parametrize("name", CALLS)
@torch.inference_mode()
def test_an_operator_computes_what_its_kernel_does(name: str, table: Mapping[str, Any]) -> None:
    from npu_emulator.chips.rules import Refusal
    from npu_emulator.kernels import KERNELS

    call = CALLS[name]()
    on_npu, on_cpu = arguments_on(call, "npu"), arguments_on(call, "cpu")
    if table[name].absent:
        with pytest.raises(Refusal, match=f"has no {name}: {table[name].absent}"):
            api(name)(**on_npu)
        return
    got = tensors(api(name)(**on_npu))
    numbers = {k: TYPE_NUMBERS[v] for k, v in on_cpu.items() if isinstance(v, torch.dtype)}
    want = tensors(KERNELS[name](**on_cpu | numbers))
    assert all(result.device.type == "npu" for result in got)
    if "workspace" in name:  # memory that holds nothing yet
        assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in want]
        return
    torch.testing.assert_close([t.cpu() for t in got], want)
    for argument in call:  # what was written in place
        pairs = map(tensors, (on_npu[argument], on_cpu[argument]))
        for changed, expected in zip(*pairs, strict=True):
            torch.testing.assert_close(changed.cpu(), expected)


def test_every_kernel_is_called_here() -> None:
    from npu_emulator.kernels import KERNELS

    assert set(CALLS) == set(KERNELS)


def test_a_cast_to_fractal_nz_is_remembered() -> None:
    import torch_npu

    x = torch.zeros(64, 32, dtype=HALF, device="npu")
    assert torch_npu.get_npu_format(x) == 2
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(x, 29)) == 29


def test_vllm_ascends_slot_mapping_computes_without_triton() -> None:
    from npu_emulator.slot_mapping import SlotMapping

    table = integers(5, 7, 9, 11).view(2, 2).to("npu")
    slots = torch.zeros(8, dtype=INT, device="npu")
    starts, positions = integers(0, 3, 4).to("npu"), torch.tensor([3, 4, 5, 0, 9, 9]).to("npu")
    SlotMapping()[(3,)](
        4, 8, starts, positions, table, 2, 4, slots, TOTAL_CP_WORLD_SIZE=1, PAD_ID=-1
    )
    assert slots.tolist() == [23, 28, 29, 36, -1, -1, -1, -1]
