# SPDX-License-Identifier: Apache-2.0
"""Writes shards of W8A8SC from the tensors of W8A8S.

The folder appears under its name when it is complete, and not before.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vllm_glm41v_npu.checkpoint.description import COMPRESSED, DESCRIPTION, SPARSE, Description
from vllm_glm41v_npu.quant.w8a8sc.container import Checksum, Compressed
from vllm_glm41v_npu.quant.w8a8sc.portable import entropy_bytes
from vllm_glm41v_npu.quant.w8a8sc.record import LAYOUT, RECORD, Record
from vllm_glm41v_npu.quant.w8a8sc.shards import ShardWriter

REPORT = "compression_report.json"
LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
NOT_COPIED = ("quant_model_description", "ori_quant_model_", "parameters_type_map.json", REPORT)
"""Beginnings of the names of files that would be wrong beside the shards."""

Encode = Callable[[torch.Tensor], Compressed]


class CompressionError(ValueError):
    """The checkpoint cannot be compressed, or the result not be written; nothing was."""


@dataclass(frozen=True)
class Layer:
    """One compressed weight, in bytes.

    original: N * K.
    compressed: stream, index and info.
    entropy: the least for a code without context; see `portable.entropy_bytes`.
    """

    rank: int
    name: str
    original: int
    compressed: int
    entropy: float


class Compressor:
    """Takes every rank's tensors, in any order, and writes its shards.

    Args:
        folder: Where to.
        tp_size: Number of ranks.
        codec: What wrote it, for the record.
        encode: The codec.
        on_layer: Is told of each compressed weight.
    """

    def __init__(
        self,
        folder: Path,
        tp_size: int,
        codec: str,
        encode: Encode,
        on_layer: Callable[[Layer], None] = lambda layer: None,
    ) -> None:
        self.folder, self.codec, self.encode, self.on_layer = folder, codec, encode, on_layer
        self.writers = [ShardWriter(folder, rank, tp_size) for rank in range(tp_size)]
        self.layers: list[Layer] = []

    def add(self, rank: int, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; int8 matrices are compressed, all else is kept as it is."""
        if tensor.dtype != torch.int8 or tensor.dim() != 2:
            self.writers[rank].add(name, tensor)
            return
        weight = tensor.contiguous()
        compressed = self.encode(weight)
        layer = name.removesuffix(".weight")
        self.writers[rank].add_compressed(layer, compressed, Checksum.of(compressed, weight))
        entropy = entropy_bytes(weight)
        self.layers.append(Layer(rank, layer, weight.nbytes, compressed.nbytes, entropy))
        self.on_layer(self.layers[-1])

    def finish(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """Write the rest, the description and the report, and return the report.

        Args:
            description: That of the W8A8S checkpoint, with the entries that stay.

        Raises:
            CompressionError: There was nothing to compress.
        """
        if not self.layers:
            raise CompressionError(
                f"No weight of {SPARSE} was found, so nothing can be compressed."
            )
        files = tuple(writer.close() for writer in self.writers)
        record = Record(self.codec, len(self.writers), "weights", files, LAYOUT)
        _write_json(self.folder / DESCRIPTION, described(description) | {RECORD: record.to_json()})
        report = self._report()
        _write_json(self.folder / REPORT, report)
        return report

    def _report(self) -> dict[str, Any]:
        total = {
            key: sum(getattr(layer, key) for layer in self.layers)
            for key in ("original", "compressed", "entropy")
        }
        return {
            "codec": self.codec,
            "tensor_parallel_size": len(self.writers),
            "bytes": total | {"all_tensors": sum(writer.nbytes for writer in self.writers)},
            "ratio": total["compressed"] / total["original"],
            "entropy_ratio": total["entropy"] / total["original"],
            "layers": [asdict(layer) for layer in self.layers],
        }


def described(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the shards: `.weight` of W8A8S is W8A8SC, all else stays."""
    types = {
        name: COMPRESSED if kind == SPARSE and name.endswith(".weight") else kind
        for name, kind in description.items()
        if name != RECORD
    }
    return types | {"model_quant_type": COMPRESSED, "version": "1.0.0"}


def check_description(description: Description | None, folder: Path) -> Description:
    """Return the description of a W8A8S checkpoint; raise CompressionError where it is another."""
    if description is None:
        raise CompressionError(
            f"{folder} holds no {DESCRIPTION}. Give a {SPARSE} checkpoint of msModelSlim or of "
            "`glm41v quantize`; beside shards that vLLM saved, copy the checkpoint's own files."
        )
    others = {kind for kind in description.on_disk.values() if kind not in ("FLOAT", SPARSE)}
    if description.kind != SPARSE or others:
        found = ", ".join(sorted({description.kind, *others}))
        raise CompressionError(
            f"{folder / description.file} describes {found}; only {SPARSE} is compressed, as its "
            f"weights are small numbers. Quantize to {SPARSE}."
        )
    return description


@contextmanager
def new_folder(output: Path, source: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write to, which becomes `output` at the end, and is removed on any error.

    Raises:
        CompressionError: `output` is there already and may not be replaced, or the disk is full.
    """
    output = output.absolute()
    _check_output(output, source, overwrite)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise CompressionError(f"{output} cannot be made ({error.strerror}).") from error
    try:
        yield folder
        folder.chmod(0o755)
        _replace(folder, output)
    except (OSError, SafetensorError) as error:
        if _disk_is_full(error):
            raise CompressionError(
                f"The disk of {output} is full, and nothing was kept. The shards need about as "
                f"much as {source}: free some space, or give a folder on another disk."
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_output(output: Path, source: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise CompressionError(f"{output} exists. Give another folder, or --overwrite.")
    if source.resolve().is_relative_to(output.resolve()) or not (output / REPORT).exists():
        raise CompressionError(
            f"{output} exists and is no result of `glm41v compress`, which alone --overwrite "
            "replaces. Give another folder, or remove it yourself."
        )


def _replace(folder: Path, output: Path) -> None:
    """Put `folder` in the place of `output`, which is kept until then."""
    if not output.exists():
        os.rename(folder, output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}-old-", dir=output.parent))
    os.rename(output, old / output.name)
    try:
        os.rename(folder, output)
    except BaseException:
        os.rename(old / output.name, output)
        raise
    finally:
        shutil.rmtree(old)


def _disk_is_full(error: Exception) -> bool:
    # safetensors passes the system's error on as text.
    return getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)


def copy_small_files(source: Path, folder: Path) -> None:
    """Copy config, tokenizer and template: all that is neither weights nor written anew."""
    for path in sorted(source.iterdir()):
        if (
            path.is_file()
            and not path.name.endswith(LARGE_SUFFIXES)
            and not path.name.startswith(NOT_COPIED)
        ):
            shutil.copyfile(path, folder / path.name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
