# SPDX-License-Identifier: Apache-2.0
"""The portable codec loses nothing, comes near the entropy, and says what is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vllm_glm41v_npu.quant.w8a8sc.container import (
    PARTS,
    Checksum,
    Compressed,
    ContainerError,
    stored_crc,
)
from vllm_glm41v_npu.quant.w8a8sc.portable import OFFSET_BITS, decode, encode, entropy_bytes

FIXTURE = Path(__file__).parents[1] / "data" / "msmodelslim" / "w8a8s_fp16"


def sparse_weight(n: int, k: int, sigma: float = 3.0, seed: int = 0) -> torch.Tensor:
    """int8 [n, k] as W8A8S has it: a bell of 4 bits, and one outlier in a hundred."""
    rng = np.random.default_rng(seed)
    weight = np.rint(rng.normal(0, sigma, (n, k))).clip(-8, 7)
    outliers = rng.random((n, k)) < 0.01
    weight[outliers] = np.rint(rng.normal(0, 40, outliers.sum())).clip(-128, 127)
    return torch.from_numpy(weight.astype(np.int8))


def compressed_of(weight: torch.Tensor) -> tuple[Compressed, Checksum]:
    compressed = encode(weight)
    return compressed, Checksum.of(compressed, weight)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 300),
    k=st.integers(1, 600),
    sigma=st.sampled_from([0.0, 0.3, 3.0, 200.0]),
    seed=st.integers(0, 9),
)
def test_round_trip(n: int, k: int, sigma: float, seed: int) -> None:
    """Guards the blocks at ragged edges, constant blocks, and those that do not shrink."""
    weight = sparse_weight(n, k, sigma, seed)
    compressed, checksum = compressed_of(weight)
    assert 0 < compressed.weight.numel() <= n * k
    assert torch.equal(decode("x", compressed, checksum), weight)
    assert Checksum.from_json(checksum.to_json()) == checksum


@pytest.mark.parametrize(("n", "k"), [(128, 256), (129, 256), (128, 257), (4608, 512), (1, 1)])
def test_the_container_is_what_vllm_ascend_allocates(n: int, k: int) -> None:
    """Guards dtypes and sizes: sharded_state copies into w8a8sc.py's parameters as they are."""
    compressed = encode(sparse_weight(n, k))
    assert compressed.weight.dtype == compressed.index.dtype == torch.int8
    assert compressed.weight.dim() == compressed.index.dim() == 1
    assert compressed.weight.numel() <= k * n
    assert compressed.index.numel() == int(np.ceil(k / 256)) * int(np.ceil(n / 128)) * 8
    assert compressed.info.dtype == torch.int64
    assert compressed.info.tolist() == [8, 8, k, n, 1]


def test_the_format_to_the_byte() -> None:
    """Guards docs/w8a8sc.md: other programs read the files by it, in a language without ours."""
    import zlib

    weight = sparse_weight(200, 300)
    compressed = encode(weight)
    stream = compressed.weight.numpy().tobytes()
    place = 0
    entries = np.frombuffer(compressed.index.numpy().tobytes(), "<u8").tolist()
    starts = [(n, k) for n in (0, 128) for k in (0, 256)]
    assert len(entries) == len(starts)
    for entry, (n, k) in zip(entries, starts, strict=True):
        offset, size = entry % 2**40, entry // 2**40
        assert offset == place
        block = zlib.decompress(stream[offset : offset + size], -15)
        assert block == weight[n : n + 128, k : k + 256].numpy().tobytes()
        place += size
    assert place == len(stream)


def test_weights_that_do_not_shrink_are_stored() -> None:
    """Guards the parameter's size, N * K, which nothing may exceed."""
    weight = torch.from_numpy(np.random.default_rng(0).integers(-128, 128, (256, 512), np.int8))
    compressed, checksum = compressed_of(weight)
    assert compressed.weight.numel() == weight.numel()
    assert torch.equal(compressed.weight[: 128 * 256].view(128, 256), weight[:128, :256])
    assert torch.equal(decode("x", compressed, checksum), weight)


def damaged(compressed: Compressed, part: str, place: int, bit: int) -> Compressed:
    tensor = getattr(compressed, part).clone()
    tensor.view(torch.uint8)[place] ^= 1 << bit
    return replace(compressed, **{part: tensor})


def test_every_flipped_byte_is_noticed() -> None:
    """Guards against a wrong weight after a bad copy; the message names the tensor."""
    compressed, checksum = compressed_of(sparse_weight(20, 300))
    for part in PARTS:
        size = getattr(compressed, part).nbytes
        for place in range(size):
            broken = damaged(compressed, part, place, bit=place % 8)
            with pytest.raises(ContainerError, match="layers.3.o_proj"):
                decode("layers.3.o_proj", broken, checksum)


def test_a_stream_that_was_written_wrong_gives_no_wrong_weight() -> None:
    """Guards the checks behind the stored checksum, which a faulty writer would have made fit."""
    weight = sparse_weight(20, 300)
    compressed, checksum = compressed_of(weight)
    refused = 0
    for part in ("weight", "index"):
        for place in range(getattr(compressed, part).nbytes):
            broken = damaged(compressed, part, place, bit=place % 8)
            try:
                found = decode("x", broken, replace(checksum, stored=stored_crc(broken)))
            except ContainerError as error:
                assert "x" in str(error)
                refused += 1
            else:
                assert torch.equal(found, weight)  # a bit after the end of a block's codes
    assert refused > 0.99 * (compressed.weight.nbytes + compressed.index.nbytes)


def test_a_truncated_stream_is_refused() -> None:
    """Guards against the end of a weight being left as it was in memory."""
    compressed, checksum = compressed_of(sparse_weight(130, 300))
    short = replace(compressed, weight=compressed.weight[:-40])
    with pytest.raises(ContainerError, match="x is damaged"):
        decode("x", short, checksum)
    with pytest.raises(ContainerError, match="x.index does not divide"):
        decode("x", short, replace(checksum, stored=stored_crc(short)))


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("info", [8, 8, 300, 129, 1], "x is damaged"),
        ("info", [4, 8, 300, 130, 1], "x.info holds"),
        ("info", [8, 8, -300, 130, 1], "x.info holds"),
        ("info", [8, 8, 300, 130], "x.info is torch.int64"),
        ("info", [8, 8, 300, 300, 1], "x.index is torch.int8"),
        ("info", [8, 8, 10, 10, 1], "x.index is torch.int8"),
        ("weight", [], "x.weight has 0 bytes"),
        ("weight", [[1, 2]], "x.weight is torch.int8"),
    ],
)
def test_what_is_no_container_is_refused(part: str, value: list, says: str) -> None:
    """Guards against reading beyond a tensor, and names the tensor that is wrong."""
    compressed, checksum = compressed_of(sparse_weight(130, 300))
    dtype = getattr(compressed, part).dtype
    broken = replace(compressed, **{part: torch.tensor(value, dtype=dtype)})
    with pytest.raises(ContainerError, match=says):
        decode("x", broken, checksum)


def test_a_block_larger_than_its_place_is_refused() -> None:
    """Guards the memory behind a block from an index that gives it too much."""
    weight = sparse_weight(128, 512)
    compressed, checksum = compressed_of(weight)
    stream = torch.zeros(40000, dtype=torch.int8)
    entries = np.array([39999 << OFFSET_BITS, (1 << OFFSET_BITS) | 39999], "<u8")
    index = torch.from_numpy(entries.view(np.int8))
    broken = replace(compressed, weight=stream, index=index)
    with pytest.raises(ContainerError, match="39999 bytes to a block of 32768 weights"):
        decode("x", broken, replace(checksum, stored=stored_crc(broken)))


def test_floats_are_refused() -> None:
    """Guards against a float weight that is taken for bytes."""
    with pytest.raises(ValueError, match="Only int8 weights"):
        encode(torch.zeros(4, 4))


def test_the_size_is_near_the_entropy_at_a_true_shape() -> None:
    """Guards the choice of coder: within 5 % of what any code without context could do."""
    weight = sparse_weight(4608, 4096)  # qkv_proj
    assert encode(weight).nbytes < 1.05 * entropy_bytes(weight)


def test_the_size_is_near_the_entropy_of_msmodelslim_weights() -> None:
    """Guards the same on weights that msModelSlim made, small as they are."""
    tensors = load_file(next(FIXTURE.glob("*.safetensors")))
    weights = [t for name, t in tensors.items() if t.dtype == torch.int8 and t.dim() == 2]
    assert len(weights) == 10
    size = sum(encode(weight).nbytes for weight in weights)
    assert size < 1.05 * sum(map(entropy_bytes, weights))


def test_entropy_of_known_weights() -> None:
    """Guards the yardstick: two values that are equally frequent take one bit each."""
    weight = torch.tensor([[-5, 9] * 128] * 128, dtype=torch.int8)
    assert entropy_bytes(weight) == pytest.approx(128 * 256 / 8)
    assert entropy_bytes(torch.ones(300, 300, dtype=torch.int8)) == 0
