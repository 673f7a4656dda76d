# SPDX-License-Identifier: Apache-2.0
"""How CANN's compressor is called, with a program in its place that writes the same files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.quant.test_codec import sparse_weight
from vllm_glm41v_npu.quant.w8a8sc import cann
from vllm_glm41v_npu.quant.w8a8sc.container import index_length

# Its stream is the input with the second half cut off: enough for the container's rules.
STAND_IN = """#!{python}
import sys
import numpy as np
assert len(sys.argv) == 12
dim_k, dim_n, tight, k_value, n_value, kind, tiling = map(int, sys.argv[1:8])
assert (tight, k_value, n_value, kind, tiling) == (1, 1, 1, 0, 0)
source, stream, index, info = sys.argv[8:]
weight = np.fromfile(source, np.int8)
assert weight.size == dim_k * dim_n * 16 * 32
{body}
"""
WRITES = """
kept = weight[: weight.size // 2]
kept.tofile(stream)
np.full(8 * -(-dim_k // 8) * -(-dim_n // 8), 7, np.uint8).tofile(index)
np.array([8, 8, kept.size], np.uint32).tofile(info)
"""


def stand_in(folder: Path, body: str = WRITES) -> Path:
    """A program that is called like CANN's compressor."""
    path = folder / "compress_excutor"
    path.write_text(STAND_IN.format(python=sys.executable, body=body))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("n", "k"), [(32, 64), (256, 512), (40, 70)])
def test_a_weight_is_handed_over_in_fractals(tmp_path: Path, n: int, k: int) -> None:
    """Guards the order of the bytes that the chip's decoder gives back, and the container."""
    weight = sparse_weight(n, k)
    compressed = cann.encode(weight, stand_in(tmp_path))
    assert compressed.info.tolist() == [8, 8, k, n, 1]
    assert compressed.index.numel() == index_length(n, k)
    assert (compressed.index == 7).all()
    rows, columns = -(-n // 16), -(-k // 32)
    expected = [
        int(weight[i * 16 + r, j * 32 + c]) if i * 16 + r < n and j * 32 + c < k else 0
        for j in range(columns)
        for i in range(rows)
        for r in range(16)
        for c in range(32)
    ]
    kept = rows * columns * 512 // 2
    assert compressed.weight.tolist() == expected[:kept]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("sys.exit('GE initialize failed.')", "ended with 1 and said: GE initialize failed."),
        ("", "wrote no stream.bin and no index.bin and no info.bin"),
        (WRITES.replace("8, 8, kept", "4, 8, kept"), r"reported \[4, 8, 1024\]"),
        (WRITES.replace("kept.size]", "5]"), r"reported \[8, 8, 5\]"),
        (WRITES.replace("np.full(8", "np.full(2"), r"index is torch.int8 \[2\]"),
        (WRITES.replace("weight.size // 2]", "0]"), "0 bytes"),
    ],
)
def test_a_failing_compressor_is_reported(tmp_path: Path, body: str, says: str) -> None:
    """Guards against shards that the chip cannot decode: the program itself returns 0."""
    with pytest.raises((cann.CompressorError, ValueError), match=says):
        cann.encode(sparse_weight(32, 64), stand_in(tmp_path, body))


def test_the_compressor_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the three places where it is looked for, and their order."""
    monkeypatch.delenv(cann.VARIABLE, raising=False)
    with pytest.raises(cann.CompressorError, match="was not found.*--codec portable"):
        cann.find_compressor()

    package = tmp_path / "site" / "msmodelslim"
    (package / cann.BUILT).parent.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('nobody imports this')")
    installed = stand_in((package / cann.BUILT).parent)
    monkeypatch.syspath_prepend(package.parent)
    assert cann.find_compressor() == installed.resolve()

    named = stand_in(tmp_path)
    monkeypatch.setenv(cann.VARIABLE, str(named))
    assert cann.find_compressor() == named.resolve()
    assert cann.find_compressor(installed) == installed.resolve()


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("no program")])
def test_what_is_no_program_is_refused(tmp_path: Path, make) -> None:
    """Guards against a failure at the first weight, after minutes of reading."""
    path = tmp_path / "compress_excutor"
    make(path)
    with pytest.raises(cann.CompressorError, match="is no program that can be run"):
        cann.find_compressor(path)


def test_fractals_are_the_documented_order() -> None:
    """Guards `to_nz` where nothing is padded: [K / 32, N / 16, 16, 32]."""
    weight = torch.arange(64 * 64).view(64, 64).remainder(127).to(torch.int8)
    fractals = cann.to_nz(weight)
    assert fractals.shape == (2, 4, 16, 32)
    assert torch.equal(fractals[1, 2], weight[32:48, 32:64])
