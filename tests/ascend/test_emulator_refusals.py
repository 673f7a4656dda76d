# SPDX-License-Identifier: Apache-2.0
"""Faults planted on tensors of the emulated NPU: each one is caught, with a sentence that says why.

The tables themselves are tested in tests/emulator/test_chips.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.ascend
HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(scope="module", autouse=True)
def checker() -> Any:
    from npu_emulator import emulator

    return emulator.install()


@pytest.fixture
def refused() -> type[RuntimeError]:
    from npu_emulator.chips.rules import Refusal

    return Refusal


def chip() -> str:
    from npu_emulator.settings import current_chip

    return current_chip().title


def zeros(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="npu").zero_()


def moved(dtype: torch.dtype) -> Tensor:
    """Of any dtype: it is only moved there."""
    return torch.zeros(4, dtype=dtype).to("npu")


def fused_attention(**changes: Any) -> Any:
    import torch_npu

    call = {
        "query": zeros(6, 4, 128),
        "key": zeros(6, 2, 128),
        "value": zeros(6, 2, 128),
        "actual_seq_lengths": [4, 6],
        "actual_seq_lengths_kv": [4, 6],
        "num_heads": 4,
        "num_key_value_heads": 2,
        "input_layout": "TND",
    }
    return torch_npu.npu_fused_infer_attention_score(**call | changes)


def rope(mode: str) -> Any:
    import torch_npu

    query, cos = zeros(1, 5, 4, 128), zeros(1, 5, 1, 128)
    return torch_npu.npu_apply_rotary_pos_emb(query, query.clone(), cos, cos, "BSND", mode)


def mrope() -> Any:
    import torch_npu

    positions = torch.zeros(3, 5, dtype=torch.int64, device="npu")
    query, cos_sin = zeros(5, 256), zeros(16, 64)
    return torch_npu.npu_mrope(positions, query, query, cos_sin, 128, mrope_section=[8, 12, 12])


def quantize(scale: torch.dtype) -> Any:
    import torch_npu

    return torch_npu.npu_quantize(zeros(3, 64), zeros(1, dtype=scale), None, torch.qint8, -1)


def quant_matmul(scale: torch.dtype) -> Any:
    import torch_npu

    x = zeros(64, 64, dtype=torch.int8)
    return torch_npu.npu_quant_matmul(x, x, zeros(64, dtype=scale), output_dtype=HALF)


def bicubic() -> Any:
    picture, grid = zeros(1, 8, 24, 24, dtype=FLOAT), zeros(1, 10, 1, 2, dtype=FLOAT)
    return functional.grid_sample(picture, grid, mode="bicubic", align_corners=False)


def mask_assignment() -> Any:
    x = zeros(9, 64)
    x[torch.ones(9, dtype=torch.bool, device="npu")] = zeros(9, 64)
    return x


def graft() -> Any:
    import torch_npu

    return torch_npu.npu_fast_gelu(zeros(4))


ANY, A2, A310P = "", "Atlas A2", "Atlas 310P"
FAULTS: dict[str, tuple[str, Callable[[], Any], str]] = {
    # of the chips whose title starts so, what is called, and what the refusal says
    "layout of another meaning": (
        A2,
        lambda: fused_attention(input_layout="BSH"),
        "key is float16 .6, 2, 128., and has to be of the dimensions of input_layout",
    ),
    "layout of other dimensions": (
        A2,
        lambda: fused_attention(input_layout="BNSD"),
        "query is float16 .6, 4, 128., and has to be of the dimensions of input_layout",
    ),
    "layout not known": (
        A2,
        lambda: fused_attention(input_layout="SBH"),
        "input_layout is 'SBH', and has to be 'BSH' or 'BSND'",
    ),
    "head size": (
        A2,
        lambda: fused_attention(query=zeros(6, 4, 64)),
        "query is float16 .6, 4, 64., and has to be of head size 128 with TND",
    ),
    "mode": (
        ANY,
        lambda: rope("interleave"),
        "npu_apply_rotary_pos_emb: rotary_mode is 'interleave', and has to be 'half' .op-plugin",
    ),
    "dtype of an argument": (
        A310P,
        lambda: moved(BF16) + 1,
        "aten::add.Tensor: self is bfloat16, and has to be one of float64, float32, float16",
    ),
    "dtype of a factory": (
        A310P,
        lambda: torch.ones(3, dtype=BF16, device="npu"),
        "aten::ones: its result is bfloat16 .3., and has to be of another dtype than bfloat16",
    ),
    "dtype of a cast": (A310P, lambda: zeros(3).to(BF16), "aten::_to_copy: self is float16"),
    "dtype cast from": (A310P, lambda: moved(BF16).float(), "aten::_to_copy: self is bfloat16"),
    "dtype of scales": (ANY, lambda: quantize(HALF), "scales is float16 .1., and has to be"),
    "dtype of a scale": (ANY, lambda: quant_matmul(HALF), "scale is float16, and has to be one of"),
    "operator absent": (A310P, mrope, "has no npu::npu_mrope: its document does not list"),
    "attention absent": (A310P, fused_attention, "has no npu::npu_fused_infer_attention_score"),
    "assignment by a mask": (
        A310P,
        mask_assignment,
        "aten::index_put_: indices is .bool .9.., and has to be of integers where floats",
    ),
    "bicubic": (
        A310P,
        bicubic,
        "aten::grid_sampler_2d: interpolation_mode is 2, and has to be bilinear or nearest",
    ),
    "no row": (ANY, lambda: torch.linalg.cholesky(zeros(3, 3, dtype=FLOAT)), "has no row in the"),
    "no row of its own": (ANY, graft, "npu::npu_fast_gelu has no row in the table of"),
    "a tensor of the host": (
        ANY,
        lambda: zeros(4) + torch.zeros(4, dtype=HALF),
        "aten::add.Tensor: other is on cpu, and has to be on the device",
    ),
    "a tensor of another device": (
        ANY,
        lambda: zeros(4) + torch.zeros(4, dtype=HALF, device="npu:1"),
        "aten::add.Tensor: other is on npu:1, and has to be on npu:0 as the others",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(fault: str, refused: Any, checker: Any) -> None:
    where, call, says = FAULTS[fault]
    if not chip().startswith(where):
        pytest.skip(f"no fault on {chip()}")
    for _ in range(2):  # what was refused once is not known to be right
        with pytest.raises(refused, match=says) as refusal:
            call()
    assert str(refusal.value) in checker.refused


@pytest.mark.parametrize("fault", ["bicubic", "assignment by a mask", "operator absent"])
def test_what_one_chip_refuses_the_other_computes(fault: str) -> None:
    where, call, _ = FAULTS[fault]
    if chip().startswith(where):
        pytest.skip(f"a fault on {chip()}")
    call()


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts another function in the place of the Meta kernel of npu_swiglu."""
    from npu_emulator import checks

    def plant(meta: Callable[..., Any]) -> None:
        monkeypatch.setattr(checks, "_call_meta", lambda name, values: meta(*values))

    return plant


@pytest.mark.parametrize(
    ("promise", "says"),
    [
        (lambda x, dim: x.new_empty(x.shape, device="meta"), r"says float16 \[5, 192\]"),
        (lambda x, dim: torch.empty(5, 96, device="meta"), r"says float32 \[5, 96\]"),
    ],
    ids=["shape", "dtype"],
)
def test_a_kernel_that_the_meta_kernel_contradicts_is_refused(
    promise: Callable[..., Any], says: str, planted: Any, refused: Any
) -> None:
    import torch_npu

    planted(promise)
    with pytest.raises(refused, match=rf"npu_swiglu returned float16 \[5, 96\] .* {says}"):
        torch_npu.npu_swiglu(zeros(5, 192))


def test_what_the_meta_kernel_refuses_is_refused(planted: Any, refused: Any) -> None:
    import torch_npu

    def fail(x: Tensor, dim: int) -> None:
        raise ValueError("dim is too small")

    planted(fail)
    with pytest.raises(refused, match="Meta kernel of npu::npu_swiglu refuses .*: dim is too"):
        torch_npu.npu_swiglu(zeros(7, 192))


def test_an_operator_without_a_kernel_is_refused(monkeypatch: Any, refused: Any) -> None:
    from npu_emulator import checks

    has = checks._has_kernel
    monkeypatch.setattr(checks, "_has_kernel", lambda name, key: key != "CPU" and has(name, key))
    import torch_npu

    with pytest.raises(refused, match="npu::npu_swiglu has no kernel here: write one in"):
        torch_npu.npu_swiglu(zeros(9, 192))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x, dim=-1: x, r"takes \['x', 'dim'\]; its schema has \['input', 'dim'\]"),
        (lambda input: input, r"takes \['input'\]; its schema has \['input', 'dim'\]"),
    ],
    ids=["names", "number"],
)
def test_a_kernel_of_another_signature_is_refused(function: Any, says: str) -> None:
    from npu_emulator.kernels.registry import check_signature

    with pytest.raises(TypeError, match=says):
        check_signature("npu::npu_swiglu", function)
    with pytest.raises(TypeError, match="npu::npu_nothing has a kernel, and torch_npu has no such"):
        check_signature("npu::npu_nothing", function)


def test_every_kernel_has_the_signature_of_the_live_schema() -> None:
    from npu_emulator.kernels import KERNELS
    from npu_emulator.kernels.registry import check_signature

    for name, function in KERNELS.items():
        check_signature(name, function)


def test_a_kernel_launched_past_the_emulator_is_refused() -> None:
    """What torch_npu would still hand to the device fails, and does not return nothing."""
    import ctypes

    runtime = ctypes.CDLL("libascendcl.so")
    runtime.aclGetRecentErrMsg.restype = ctypes.c_char_p
    for function in ("aclopCompileAndExecute", "aclrtLaunchKernelWithHostArgs"):
        assert getattr(runtime, function)() != 0
        assert b"there is no device" in runtime.aclGetRecentErrMsg()
