# SPDX-License-Identifier: Apache-2.0
"""The stand-in for CANN's compressor, and the product that decodes what it writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from npu_emulator.compressed_weights import OPTIONS, decode, encode, write_program
from npu_emulator.kernels.quantization import matmul_compress_dequant
from vllm_glm41v_npu.quant.w8a8sc import cann


def weights(n: int, k: int, largest: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n + k)
    return torch.randint(-largest, largest + 1, (n, k), generator=generator, dtype=torch.int8)


@pytest.mark.parametrize("largest", [3, 127])
@pytest.mark.parametrize(("n", "k"), [(128, 320), (200, 500), (300, 70)])
def test_what_is_decoded_is_what_was_encoded(n: int, k: int, largest: int) -> None:
    """Blocks that shrink and blocks that do not, whole ones and those at the edges."""
    weight = weights(n, k, largest)
    fractals = cann.to_nz(weight)
    stream, index = encode(fractals.numpy())
    assert index.size == 8 * -(-k // 256) * -(-n // 128)
    assert (stream.size < weight.numel()) == (largest == 3)
    assert np.array_equal(decode(stream, index, n, k), weight.numpy())


def test_the_program_is_called_as_canns(tmp_path: Path) -> None:
    """Guards the arguments and the container, by the way in which `glm41v compress` calls it."""
    weight = weights(192, 320, 4)
    compressed = cann.encode(weight, write_program(tmp_path / "compress_excutor"))
    found = decode(compressed.weight.numpy(), compressed.index.numpy(), 192, 320)
    assert np.array_equal(found, weight.numpy())


def test_other_options_are_refused(tmp_path: Path) -> None:
    program = write_program(tmp_path / "compress_excutor")
    command = [str(program), "1", "1", "0", *OPTIONS[1:], "weight", "stream", "index", "info"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "The options are ['0', '1', '1', '0', '0']" in done.stderr


def test_the_product_decodes_its_weight() -> None:
    """(x . W^T + bias) * scale, where the scale is a float32's bits."""
    weight, x = weights(192, 320, 4), weights(5, 320, 127)
    stream, index = (torch.from_numpy(a.copy()) for a in encode(cann.to_nz(weight).numpy()))
    bias = torch.arange(192, dtype=torch.int32)[None] - 90
    scale = torch.linspace(1e-4, 1e-3, 192)
    bits = scale.view(torch.int32).to(torch.int64)[None].to(torch.uint64)
    got = matmul_compress_dequant(x, stream, index, bias, bits)
    exact = (x.long() @ weight.long().t() + bias).double() * scale.double()
    assert got.dtype == torch.float16
    assert torch.equal(got, exact.half())
