# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's folder: where it is, and what its files say without a weight being read.

Importing this module loads neither torch nor safetensors.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

Json = dict[str, Any]

INDEX = "model.safetensors.index.json"
FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Names of float dtypes: safetensors' to torch's."""

LARGEST_HEADER = 100_000_000  # safetensors refuses more
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Tensor:
    """One tensor's entry in a header; `file` is the name of the file that holds it."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    file: str

    def size_in(self, dtype: str) -> int:
        """Return its bytes where floats are loaded in `dtype`."""
        if self.dtype not in FLOATS or dtype not in FLOAT_BYTES:
            return self.size
        return math.prod(self.shape) * FLOAT_BYTES[dtype]


class BadFile(ValueError):
    """A weight file cannot be read; the message says why."""


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors that a safetensors file holds, checked against the file's size.

    Raises:
        BadFile: The file is cut short, or no safetensors file.
    """
    actual = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise BadFile("is a git-lfs pointer, not the weights")
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
        if not 2 <= length <= LARGEST_HEADER:
            raise BadFile("is no safetensors file")
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        raise BadFile(f"is cut short in its header, at {actual:,} bytes")
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        tensors = {
            name: Tensor(
                entry["dtype"], tuple(entry["shape"]), end - entry["data_offsets"][0], path.name
            )
            for (name, entry), end in zip(entries.items(), ends, strict=True)
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise BadFile("has a header that is not safetensors'") from error
    announced = 8 + length + max(ends, default=0)
    if actual < announced:
        raise BadFile(f"is cut short: {actual:,} of {announced:,} bytes")
    return tensors


class Checkpoint:
    """A checkpoint in `folder`; every property reads its files once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, *names: str) -> bool:
        """Return whether any of these files is there."""
        return any((self.folder / name).exists() for name in names)

    def read_json(self, name: str) -> Json | None:
        """Return the object in a file; None where there is no such file, or no object in it."""
        try:
            value = json.loads((self.folder / name).read_text())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    @cached_property
    def config(self) -> Json | None:
        return self.read_json("config.json")

    @cached_property
    def text_config(self) -> Json:
        """The part of config.json with the text settings, which may be all of it."""
        config = self.config or {}
        nested = config.get("text_config")
        return nested if isinstance(nested, dict) else config

    @cached_property
    def index(self) -> dict[str, str]:
        """Tensor to file, where the weights are several files with an index."""
        weight_map = (self.read_json(INDEX) or {}).get("weight_map")
        return weight_map if isinstance(weight_map, dict) else {}

    @cached_property
    def weight_files(self) -> list[str]:
        """The files that vLLM would load: those of the index, or all where there is none."""
        if self.index:
            return sorted(set(self.index.values()))
        return sorted(path.name for path in self.folder.glob("*.safetensors"))

    @cached_property
    def bad_files(self) -> dict[str, str]:
        """Weight file to what is wrong with it."""
        return self._read[1]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the weight files that can be read."""
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors: dict[str, Tensor] = {}
        bad = {}
        for name in self.weight_files:
            try:
                tensors |= read_header(self.folder / name)
            except FileNotFoundError:
                bad[name] = "is missing"
            except OSError as error:
                bad[name] = f"cannot be read ({error.strerror})"
            except BadFile as error:
                bad[name] = str(error)
        return tensors, bad

    @cached_property
    def dtype(self) -> str:
        """The dtype of the floats: config.json's, as vLLM reads it, or else the weights'."""
        for part in (self.config or {}, self.text_config):
            named = part.get("dtype") or part.get("torch_dtype")
            if isinstance(named, str):
                return named.removeprefix("torch.")
        floats = Counter(t.dtype for t in self.tensors.values() if t.dtype in FLOATS)
        return FLOATS[floats.most_common(1)[0][0]] if floats else "float32"

    @cached_property
    def quantization_config(self) -> Json | None:
        """The settings that another tool than msModelSlim has written into config.json."""
        for part in (self.config or {}, self.text_config):
            for key in ("quantization_config", "compression_config"):
                if isinstance(part.get(key), dict):
                    return part[key]
        return None


def local_folder(
    model: str,
    patterns: Sequence[str],
    revision: str | None = None,
    download_dir: str | None = None,
) -> Path:
    """Return a checkpoint's folder; a hub model's files of these patterns are fetched if need be.

    Args:
        model: A folder, or a model of the hub.
        patterns: Of the files that are needed, such as "*.json".
        revision: The hub model's.
        download_dir: The folder to keep a hub model in; None for the hub's own cache.
    """
    if os.path.isdir(model):
        return Path(model)

    from vllm.model_executor.model_loader import weight_utils

    found = weight_utils.maybe_download_from_modelscope(
        model, revision, download_dir, allow_patterns=list(patterns)
    )
    if found is None:
        found = weight_utils.download_weights_from_hf(model, download_dir, list(patterns), revision)
    return Path(found)
