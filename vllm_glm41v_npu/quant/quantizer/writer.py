# SPDX-License-Identifier: Apache-2.0
"""Writes the quantized checkpoint part by part, under a name that nobody sees until it is whole."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vllm_glm41v_npu.checkpoint.description import DESCRIPTION, FLOAT
from vllm_glm41v_npu.checkpoint.folder import INDEX
from vllm_glm41v_npu.quant.quantizer.plan import QuantizerError

SHARD_BYTES = 2 << 30
"""The size at which a file is written; so much is in memory too."""

NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".md")
SPARE_BYTES = 64 << 20
"""Room for the tokenizer and the other small files."""


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its name at the end, or is removed.

    Raises:
        QuantizerError: There is something at `output`, or it cannot be written.
    """
    if output.exists():
        raise QuantizerError(f"{output} exists already, and nothing is overwritten; name another.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = output.with_name(f".{output.name}-{uuid4().hex[:8]}")
        folder.mkdir()
    except OSError as error:
        raise QuantizerError(f"{output} cannot be written ({error.strerror}).") from error
    try:
        yield folder
        folder.rename(output)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise QuantizerError(_full(output, None)) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_space(output: Path, needed: int) -> None:
    """Check that there is room on a disk.

    Raises:
        QuantizerError: The disk of `output` has less than `needed` bytes to spare.
    """
    folder = output.parent
    while not folder.exists():
        folder = folder.parent
    if shutil.disk_usage(folder).free < needed + SPARE_BYTES:
        raise QuantizerError(_full(output, needed))


def _full(output: Path, needed: int | None) -> str:
    size = "more than there is" if needed is None else f"about {needed / 1e9:,.1f} GB"
    return (
        f"The disk of {output.parent} has no room for {output.name}, which needs {size}. Nothing "
        "was kept; free some space, or name an output on another disk."
    )


class Writer:
    """Collects tensors and writes them as msModelSlim does.

    One file `quant_model_weight_<type>.safetensors`, or several with an index where the whole is
    larger than SHARD_BYTES, and `quant_model_description.json`.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.name = f"quant_model_weight_{kind.lower()}"
        self.description: dict[str, str] = {"version": "1.0.0", "model_quant_type": kind}
        self.places: dict[str, int] = {}
        self.total = 0
        self._shards = 0
        self._waiting: dict[str, Tensor] = {}
        self._bytes = 0

    def add(self, name: str, tensor: Tensor, kind: str = FLOAT) -> None:
        """Take a tensor and say what it is part of: FLOAT, or a quantized layer's type."""
        size = tensor.numel() * tensor.element_size()
        if self._waiting and self._bytes + size > SHARD_BYTES:
            self._write()
        self.description[name] = kind
        self._waiting[name] = tensor.contiguous()
        self._bytes += size
        self.total += size

    def finish(self) -> None:
        """Write what is left, the index and the description."""
        self._write()
        files = [self._file(number) for number in range(self._shards)]
        for number, file in enumerate(files):
            (self.folder / self._part(number)).rename(self.folder / file)
        if self._shards > 1:
            weight_map = {name: files[number] for name, number in sorted(self.places.items())}
            index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
            write_json(self.folder / f"{self.name}.safetensors.index.json", index)
        write_json(self.folder / DESCRIPTION, self.description)

    def _write(self) -> None:
        if not self._waiting:
            return
        path = self.folder / self._part(self._shards)
        try:
            save_file(self._waiting, path)
        except SafetensorError as error:
            # Its own errors of reading and writing say no errno.
            full = "No space left" in str(error) or "os error 28" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
        path.chmod(self.folder.stat().st_mode & 0o666)  # safetensors makes it the owner's alone
        self.places |= dict.fromkeys(self._waiting, self._shards)
        self._shards += 1
        self._waiting, self._bytes = {}, 0

    def _part(self, number: int) -> str:
        return f"{self.name}-part-{number}"

    def _file(self, number: int) -> str:
        if self._shards == 1:
            return f"{self.name}.safetensors"
        return f"{self.name}-{number + 1:05d}-of-{self._shards:05d}.safetensors"


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_config(folder: Path, settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Write config.json as it was, but for the dtype that the scales were made for."""
    name = str(dtype).removeprefix("torch.")
    changed = settings | {"dtype": name, "torch_dtype": name}
    for part in ("text_config", "vision_config"):
        if isinstance(changed.get(part), dict):
            inside = changed[part]
            named = {key: name for key in ("dtype", "torch_dtype") if key in inside}
            changed[part] = inside | named
    write_json(folder / "config.json", changed)


def copy_others(source: Path, folder: Path) -> None:
    """Copy the tokenizer, the chat template, the processor's settings: all but the weights."""
    for path in sorted(source.iterdir()):
        skip = path.name in ("config.json", INDEX) or path.name.startswith(".")
        if path.is_file() and not skip and not path.name.endswith(NOT_COPIED):
            shutil.copyfile(path, folder / path.name)
