# SPDX-License-Identifier: Apache-2.0
"""Shards of W8A8SC: one set of files for each tensor-parallel rank, as vLLM's sharded_state has it.

Beside the record in the description, each file knows its rank and the checksums of its weights:
they belong to those very bytes, and are copied and replaced with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vllm_glm41v_npu.checkpoint.folder import read_header
from vllm_glm41v_npu.quant.w8a8sc.container import PARTS, Checksum, Compressed, check_stored
from vllm_glm41v_npu.quant.w8a8sc.record import MAKE, RECORD, Record, ShardError

PATTERN = "model-rank-{rank}-part-{part}.safetensors"
"""vLLM's ShardedStateLoader.DEFAULT_PATTERN."""

PART_BYTES = 512 << 20
"""The size at which a file is full, and which writing holds in memory."""


def check_shards(folder: Path, tp_size: int, encoder_tp_mode: str = "weights") -> Record:
    """Check that shards fit this network and this many ranks, and return their record.

    Reads the description and the headers of the files; no weight.

    Args:
        folder: The checkpoint.
        tp_size: vLLM's tensor_parallel_size.
        encoder_tp_mode: vLLM's mm_encoder_tp_mode.

    Raises:
        ShardError: They do not fit, or were not written by this package.
    """
    record = Record.read(folder)
    if record.tp_size != tp_size:
        raise ShardError(
            f"The shards in {folder} are for {record.tp_size} tensor-parallel ranks, and "
            f"{tp_size} were asked for. Start with --tensor-parallel-size {record.tp_size}, or "
            f"compress the W8A8S checkpoint again with --tp {tp_size}."
        )
    if record.encoder_tp_mode != encoder_tp_mode and tp_size > 1:
        raise ShardError(
            f"The shards in {folder} are for --mm-encoder-tp-mode {record.encoder_tp_mode}, and "
            f"{encoder_tp_mode} was asked for. Start without that option."
        )
    for rank, names in enumerate(record.files):
        for name in names:
            found = _metadata(folder / name)
            if (found["rank"], found["tensor_parallel_size"]) != (rank, tp_size):
                raise ShardError(
                    f"{folder / name} holds rank {found['rank']} of "
                    f"{found['tensor_parallel_size']}, not {rank} of {tp_size}: it was renamed, "
                    "or comes from another checkpoint. Copy the folder again."
                )
        _check_no_others(folder, rank, names)
    return record


@dataclass(frozen=True)
class Stored:
    """One compressed weight of a rank, which is still in its file.

    name: the layer's.
    sizes: the shape of each of PARTS.
    checksum: what they have to come to.
    """

    name: str
    sizes: Mapping[str, tuple[int, ...]]
    checksum: Checksum


def stored_weights(folder: Path, rank: int) -> dict[str, Stored]:
    """Return the compressed weights of one rank by their layers' names; no weight is read."""
    found = {}
    for file in Record.read(folder).files[rank]:
        tensors = read_header(folder / file)
        for key, value in _metadata(folder / file)["checksums"].items():
            layer = key.removesuffix(".weight")
            sizes = {part: tensors[f"{layer}.{part}"].shape for part in PARTS}
            found[layer] = Stored(layer, sizes, Checksum.from_json(value))
    return found


def verify_shard(folder: Path, rank: int) -> None:
    """Check the compressed weights of one rank as they are stored, whichever codec wrote them.

    Raises:
        ContainerError: A weight is damaged.
    """
    for name in Record.read(folder).files[rank]:
        checksums = _metadata(folder / name)["checksums"]
        with _open(folder / name) as file:
            for key, value in checksums.items():
                layer = key.removesuffix(".weight")
                parts = [file.get_tensor(f"{layer}.{part}") for part in PARTS]
                check_stored(layer, Compressed(*parts), Checksum.from_json(value))


def _check_no_others(folder: Path, rank: int, names: tuple[str, ...]) -> None:
    others = {path.name for path in folder.glob(PATTERN.format(rank=rank, part="*"))} - set(names)
    if others:
        raise ShardError(
            f"{folder} holds {', '.join(sorted(others))} beside the files of its record, and vLLM "
            "would load them too. Remove them, or copy the folder again."
        )


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ShardError(f"{path} cannot be read ({error}). Copy it again.") from error


def _metadata(path: Path) -> dict[str, Any]:
    """Return what a file says of itself."""
    with _open(path) as file:
        metadata = file.metadata() or {}
    if RECORD not in metadata:
        raise ShardError(
            f"{path} has no record of its rank and checksums in its metadata: it was not written "
            f"by this package. {MAKE}"
        )
    return json.loads(metadata[RECORD])


class ShardWriter:
    """Writes the files of one rank; call `close` at the end.

    Args:
        folder: Where to; it has to exist.
        rank: Tensor-parallel rank.
        tp_size: Number of ranks.
        part_bytes: At which a file is written; a larger tensor makes a larger file.
    """

    def __init__(self, folder: Path, rank: int, tp_size: int, part_bytes: int = PART_BYTES) -> None:
        self.folder, self.rank, self.tp_size = folder, rank, tp_size
        self.part_bytes = part_bytes
        self.files: list[str] = []
        self.nbytes = 0
        self._start_part()

    def _start_part(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._checksums: dict[str, dict[str, str]] = {}
        self._size = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor, which stays as it is until it is written."""
        self._tensors[name] = tensor.contiguous()
        self._size += tensor.nbytes
        self.nbytes += tensor.nbytes
        if self._size >= self.part_bytes:
            self._flush()

    def add_compressed(self, layer: str, compressed: Compressed, checksum: Checksum) -> None:
        """Take the three tensors of a weight, which go into one file."""
        self._checksums[f"{layer}.weight"] = checksum.to_json()
        for part in ("info", "index"):
            self._tensors[f"{layer}.{part}"] = getattr(compressed, part)
            self._size += getattr(compressed, part).nbytes
            self.nbytes += getattr(compressed, part).nbytes
        self.add(f"{layer}.weight", compressed.weight)

    def close(self) -> tuple[str, ...]:
        """Write what is left, and return the names of all files."""
        if self._tensors:
            self._flush()
        return tuple(self.files)

    def _flush(self) -> None:
        name = PATTERN.format(rank=self.rank, part=len(self.files))
        own = {
            "rank": self.rank,
            "tensor_parallel_size": self.tp_size,
            "checksums": self._checksums,
        }
        metadata = {"format": "pt", RECORD: json.dumps(own)}
        save_file(self._tensors, self.folder / name, metadata=metadata)
        (self.folder / name).chmod(0o644)  # as the other files; safetensors lets the owner alone
        self.files.append(name)
        self._start_part()
