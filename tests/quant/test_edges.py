# SPDX-License-Identifier: Apache-2.0
"""Edges of the quantized formats: scales in 64 bits, offsets, blocks that do not shrink, ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.quant.compressing import damage
from vllm_glm41v_npu.checkpoint.folder import BadFile, read_header
from vllm_glm41v_npu.cpu.kernels import int8_linear, pack_weight, quantize_static
from vllm_glm41v_npu.quant.quantizer.arithmetic import (
    LARGEST_BIAS,
    input_scale,
    quant_bias,
    weight_scale,
)
from vllm_glm41v_npu.quant.scales import float_scale, stored_scale
from vllm_glm41v_npu.quant.w8a8sc import portable
from vllm_glm41v_npu.quant.w8a8sc.container import Checksum, ContainerError
from vllm_glm41v_npu.quant.w8a8sc.ranks import Splitter
from vllm_glm41v_npu.quant.w8a8sc.shards import verify_shard


def test_the_low_half_of_64_bits_is_the_scale() -> None:
    """Guards the half, its sign bit, and the way back; the upper half says nothing."""
    scale = torch.tensor([1.5, 3e-39, 2.0**-20, -0.25, 1e30])
    stored = stored_scale(scale, torch.float16)
    assert stored.dtype == torch.int64
    upper = torch.tensor([0, 1, -1, 7, 2**30]) << 32
    for found in (stored, (stored & 0xFFFFFFFF) | upper):
        assert torch.equal(float_scale(found), scale)
    assert stored_scale(scale, torch.bfloat16) is scale


@pytest.mark.parametrize("low", [-0.3, -3.0, 0.0])
def test_offsets_are_added_and_taken_off_again(low: float) -> None:
    """Guards the sign of the input's offset in the quantizer, the bias and the kernel alike."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randint(-127, 128, (5, 32), generator=generator, dtype=torch.int8)
    bias = torch.randn(5, generator=generator) * 40
    x = torch.rand(7, 32, generator=generator) * (1.7 - low) + low
    found = input_scale(torch.tensor(low), torch.tensor(1.7), torch.float32)
    by_channel = torch.rand(5, generator=generator) / 100
    deq_scale = found.scale * by_channel
    corrected = quant_bias(weight.float(), bias, deq_scale, found.offset, "layer")
    x_q = quantize_static(x, found.scale.item(), int(found.offset))
    result = int8_linear(x_q, pack_weight(weight), deq_scale, corrected)
    want = x @ (weight.float() * by_channel[:, None]).t() + bias
    torch.testing.assert_close(result, want, atol=0.05, rtol=0.02)


def test_the_largest_weight_is_127_steps() -> None:
    """Guards the divisor: with 128 the largest weight of every row would be cut off."""
    assert weight_scale(torch.tensor([[127.0, -254.0], [1.27, 0.0]])).tolist() == [
        [2.0],
        [pytest.approx(0.01)],
    ]


def test_a_bias_leaves_half_of_32_bits_to_the_product() -> None:
    """Guards the limit itself: one step more is refused."""
    one, none = torch.ones(1), torch.zeros(1)
    weight = torch.zeros(1, 4)
    largest = torch.tensor([float(2**30 - 64)])
    assert quant_bias(weight, largest, one, none, "layer").item() == 2**30 - 64
    assert LARGEST_BIAS < 2**30 < 2**31 - LARGEST_BIAS
    with pytest.raises(ValueError, match="too many for int32"):
        quant_bias(weight, torch.tensor([2.0**30]), one, none, "layer")


def test_a_block_that_packs_to_its_own_size_is_stored() -> None:
    """Guards the one size that says nothing: equal to the block's, it means bytes as they are."""
    generator = torch.Generator().manual_seed(0)
    sizes = set()
    for seed in range(400):
        columns = 2 + seed % 40
        weight = torch.randint(-4, 4, (1, columns), generator=generator, dtype=torch.int8)
        packed = portable.encode(weight)
        sizes.add(packed.weight.numel() - columns)
        checksum = Checksum.of(packed, weight)
        assert torch.equal(portable.decode("layer", packed, checksum), weight)
        if packed.weight.numel() == columns:
            assert torch.equal(packed.weight, weight[0])
    assert max(sizes) == 0 > min(sizes)


def share(rank: int, ranks: int, kv_heads: int) -> torch.Tensor:
    """A rank's qkv of a layer whose rows are numbered."""
    head, q_heads = 4, 4
    text: Any = SimpleNamespace(
        num_attention_heads=q_heads,
        num_key_value_heads=kv_heads,
        hidden_size=q_heads * head,
        num_hidden_layers=1,
    )
    found: dict[int, torch.Tensor] = {}
    config = SimpleNamespace(text_config=text, tie_word_embeddings=False)
    splitter = Splitter(config, ranks, lambda rank, name, value: found.update({rank: value}))
    name = "language_model.model.layers.0.self_attn.{}_proj.weight"
    for part, heads, start in (("q", q_heads, 0), ("k", kv_heads, 100), ("v", kv_heads, 200)):
        rows = torch.arange(start, start + heads * head)
        splitter.add(name.format(part), rows[:, None].expand(-1, 2))
    return found[rank][:, 0]


@pytest.mark.parametrize("rank", range(4))
def test_four_ranks_share_two_key_value_heads(rank: int) -> None:
    """Guards which of them keep which head: neighbours share one, as vLLM loads them."""
    first = 4 * (rank // 2)
    want = [4 * rank, 100 + first, 200 + first]
    assert share(rank, 4, 2).view(3, 4)[:, 0].tolist() == want


def test_a_file_is_as_long_as_its_header_says(tmp_path: Path) -> None:
    """Guards the last byte: one less is a file that is cut short."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(10), "b": torch.ones(3)}, path)
    header = read_header(path)
    assert {name: (t.dtype, t.shape, t.size) for name, t in header.items()} == {
        "a": ("I64", (10,), 80),
        "b": ("F32", (3,), 12),
    }
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadFile, match="is cut short"):
        read_header(path)


def test_a_damaged_weight_is_noticed_by_its_own_checksum(copied: tuple[Path, int]) -> None:
    """Guards shards that go to a chip, which decodes whatever it is given."""
    folder, ranks = copied
    for rank in range(ranks):
        verify_shard(folder, rank)
    damage(folder / f"model-rank-{ranks - 1}-part-0.safetensors")
    with pytest.raises(ContainerError, match="qkv_proj is damaged: its compressed tensors"):
        verify_shard(folder, ranks - 1)
