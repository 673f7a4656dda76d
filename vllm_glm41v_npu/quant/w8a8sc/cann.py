# SPDX-License-Identifier: Apache-2.0
"""CANN's weight compressor, the only one whose stream Atlas 310P decodes in hardware.

It is a program, `compress_excutor`, that msModelSlim ships as source and that is built on a machine
with CANN. This calls it as msModelSlim does (pytorch/weight_compression/compress_utils.py), for one
weight at a time, with files in between. The stream itself is documented nowhere.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad

from vllm_glm41v_npu.quant.w8a8sc.container import TILING, Compressed, check_container, make_info

VARIABLE = "GLM41V_CANN_COMPRESSOR"
BUILT = "pytorch/weight_compression/compress_graph/build/compress_excutor"
"""The place in the package where msModelSlim's build script puts the program."""

FRACTAL_N, FRACTAL_K = 16, 32
OPTIONS = ("1", "1", "1", "0", "0")
"""isTight (eight bytes for a block's index), k_value, n_value, compressType (W8A8S), isTiling."""

SECONDS = 600
"""The time limit for one weight, as msModelSlim has it."""


class CompressorError(RuntimeError):
    """CANN's compressor is not there, or failed; the message says what to do."""


def find_compressor(given: Path | None = None) -> Path:
    """Return the program: the one given, else VARIABLE's, else that of an installed msModelSlim.

    Raises:
        CompressorError: There is none, or it cannot be run.
    """
    path = given or _from_environment() or _from_msmodelslim()
    if path is None:
        raise CompressorError(
            "CANN's weight compressor (compress_excutor) was not found. On a machine with CANN, "
            "install msmodelslim and run its pytorch/weight_compression/compress_graph/build.sh "
            f"with the path of CANN; or name the program with --cann-compressor or {VARIABLE}; or "
            "use --codec portable, which needs none but is decoded when loading."
        )
    if not path.is_file() or not os.access(path, os.X_OK):
        raise CompressorError(
            f"{path} is no program that can be run; CANN's compress_excutor was expected there."
        )
    return path.resolve()


def _from_environment() -> Path | None:
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def _from_msmodelslim() -> Path | None:
    spec = find_spec("msmodelslim")  # imports nothing of it
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / BUILT).is_file():
            return Path(folder) / BUILT
    return None


def to_nz(weight: torch.Tensor) -> torch.Tensor:
    """Return an int8 weight [N, K] in fractal order: [K / 32, N / 16, 16, 32], zeros added."""
    n, k = weight.shape
    weight = pad(weight, (0, -k % FRACTAL_K, 0, -n % FRACTAL_N))
    # [N, K] -> [N / 16, 16, K / 32, 32] -> [K / 32, N / 16, 16, 32]
    split = weight.unflatten(1, (-1, FRACTAL_K)).unflatten(0, (-1, FRACTAL_N))
    return split.permute(2, 0, 1, 3).contiguous()


def encode(weight: torch.Tensor, compressor: Path) -> Compressed:
    """Compress an int8 weight [N, K] for Atlas 310P.

    Raises:
        CompressorError: The program failed, or what it wrote is not what the operator takes.
    """
    n, k = weight.shape
    fractals = to_nz(weight)
    with tempfile.TemporaryDirectory(prefix="glm41v-compress-") as folder:
        source, stream, index, sizes = (
            Path(folder) / f"{name}.bin" for name in ("weight", "stream", "index", "info")
        )
        fractals.numpy().tofile(source)
        source.chmod(0o600)  # the program refuses files that others may write
        dims = [str(size) for size in fractals.shape[:2]]
        _run([str(compressor), *dims, *OPTIONS, *map(str, (source, stream, index, sizes))])
        missing = [path.name for path in (stream, index, sizes) if not path.exists()]
        if missing:
            raise CompressorError(
                f"{compressor} wrote no {' and no '.join(missing)} for a weight of {n} x {k}, "
                "though it reported no error. See whether CANN works on this machine."
            )
        compressed = Compressed(_read(stream), _read(index), make_info(n, k))
        tiling = np.fromfile(sizes, dtype=np.uint32).tolist()
    expected = [TILING, TILING, compressed.weight.numel()]
    if tiling != expected:
        raise CompressorError(
            f"{compressor} reported {tiling} (tiling of N and K, bytes) for a weight of {n} x {k}; "
            f"{expected} was expected, as npu_matmul_compress_dequant takes no other tiling."
        )
    check_container(f"{compressor.name}'s output", compressed)
    return compressed


def _read(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.fromfile(path, dtype=np.int8))


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CompressorError(f"{command[0]} took more than {SECONDS} s for one weight.") from error
    except OSError as error:
        raise CompressorError(f"{command[0]} cannot be run ({error.strerror}).") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing")[-500:]
        raise CompressorError(f"{command[0]} ended with {done.returncode} and said: {said}")
