# SPDX-License-Identifier: Apache-2.0
"""quant_model_description.json, in which msModelSlim says how each tensor is stored.

It maps the name of each tensor on disk to a type, beside `model_quant_type` and other keys without
a dot. Two forms exist: the plain one, and msModelSlim's for MindIE, whose file is named after the
type. A file is read, and its names are mapped, once in a process. Importing this module loads
neither torch nor vLLM.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vllm_glm41v_npu.checkpoint.folder import FLOATS, local_folder
from vllm_glm41v_npu.checkpoint.names import (
    DEQ_SCALE,
    INPUT_OFFSET,
    INPUT_SCALE,
    QUANT_BIAS,
    WEIGHT_OFFSET,
    WEIGHT_SCALE,
    is_wrapped,
    last_part,
    layer_parts,
    network_name,
    split_name,
)
from vllm_glm41v_npu.checkpoint.problem import Problem

DESCRIPTION = "quant_model_description.json"
MINDIE_DESCRIPTIONS = "quant_model_description_*.json"

METHOD = "ascend"
"""The value of `--quantization` for these checkpoints, here and in vllm-ascend."""

FLOAT = "FLOAT"
W8A8 = "W8A8"
SPARSE = "W8A8S"
STATIC = (W8A8, SPARSE)
DYNAMIC = "W8A8_DYNAMIC"
COMPRESSED = "W8A8SC"
"""The type of shards for each tensor-parallel rank, whose weights are compressed."""
KNOWN_TYPES = (FLOAT, *STATIC, COMPRESSED, DYNAMIC)

FLOAT_ONLY = ("embed_tokens", "position_embedding", "lm_head")
"""Layers whose weight is a matrix, but which nothing computes in int8."""

DEQ_SCALE_DTYPES = {"I64": "float16", "F32": "bfloat16"}
"""Stored dtype of deq_scale to the dtype that msModelSlim made the checkpoint for."""


class DescriptionError(ValueError):
    """The description cannot be used; the message says why, and what to do."""


@dataclass(frozen=True)
class Rule:
    """The dtype and shape that one tensor of a quantized layer must have.

    dtypes: any of these, as safetensors calls them.
    shape: numbers, or "N" and "K" for the layer's outputs and inputs.
    required: the layer does not compute without it.
    """

    dtypes: tuple[str, ...]
    shape: tuple[int | str, ...]
    required: bool = True

    def sizes(self, n: int, k: int) -> tuple[int, ...]:
        """Return the shape in a layer of `n` outputs and `k` inputs."""
        sizes = {"N": n, "K": k}
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)


_FLOATS = tuple(FLOATS)
_BY_CHANNEL = {
    "weight": Rule(("I8",), ("N", "K")),
    WEIGHT_SCALE: Rule(_FLOATS, ("N", 1)),
    WEIGHT_OFFSET: Rule(_FLOATS, ("N", 1), required=False),
    "bias": Rule(_FLOATS, ("N",), required=False),
}
_STATIC = _BY_CHANNEL | {
    WEIGHT_SCALE: Rule(_FLOATS, ("N", 1), required=False),
    INPUT_SCALE: Rule(_FLOATS, (1,)),
    INPUT_OFFSET: Rule(("I8", *_FLOATS), (1,)),
    QUANT_BIAS: Rule(("I32",), ("N",)),
    DEQ_SCALE: Rule(tuple(DEQ_SCALE_DTYPES), ("N",)),
}
RULES: dict[str, dict[str, Rule]] = {**dict.fromkeys(STATIC, _STATIC), DYNAMIC: _BY_CHANNEL}
"""Type to the tensors of its layers. A static layer's `bias` is held in `quant_bias` too, and its
`weight_scale` in `deq_scale`, so that it computes without them."""


@dataclass(frozen=True)
class Description:
    """One description, by the names on disk and by those in the network.

    file: its name, for messages.
    kind: the type of the whole checkpoint.
    on_disk: tensor on disk to type.
    types: tensor of the network, before parts are fused, to type.
    disk_names: tensor of the network to that on disk; of a norm that is there twice, the wrapped.
    extras: its other keys.
    """

    file: str
    kind: str
    on_disk: Mapping[str, str]
    types: Mapping[str, str]
    disk_names: Mapping[str, str]
    extras: Mapping[str, object]

    @classmethod
    def read(cls, folder: Path) -> Description | None:
        """Return the description in a checkpoint's folder; None where there is none.

        Raises:
            DescriptionError: It holds no JSON object, or something other than types.
        """
        path = find(folder)
        if path is None:
            return None
        state = path.stat()
        return _read(path, state.st_mtime_ns, state.st_size)

    @classmethod
    def from_json(cls, content: Mapping[str, object], file: str = DESCRIPTION) -> Description:
        """Return the description that a parsed file holds.

        The form for MindIE gives a wrapped norm the type of the layer behind it; its tensors are
        floats all the same.

        Raises:
            DescriptionError: A tensor's type is no string.
        """
        on_disk: dict[str, str] = {}
        for name, kind in content.items():
            if "." not in name:
                continue
            if not isinstance(kind, str):
                raise DescriptionError(
                    f"{file}: {name!r} has the type {kind!r}; a name is needed, one of "
                    f"{', '.join(KNOWN_TYPES)}. Quantize again, or copy the file again."
                )
            on_disk[name] = FLOAT if is_wrapped(name) else kind
        disk_names = {network_name(name): name for name in sorted(on_disk, key=is_wrapped)}
        types = {name: on_disk[disk_name] for name, disk_name in disk_names.items()}
        extras = {name: value for name, value in content.items() if "." not in name}
        kind = extras.get("model_quant_type") or _main_type(on_disk)
        return cls(file, str(kind), on_disk, types, disk_names, extras)

    def layer_type(self, layer: str) -> str:
        """Return the type of a layer of the network.

        Raises:
            DescriptionError: It is not described, or its parts have different types.
        """
        types = {part: self.types.get(f"{part}.weight") for part in self.parts(layer)}
        kinds = set(types.values())
        if len(kinds) > 1:
            listed = ", ".join(f"{part} {kind or 'none'}" for part, kind in types.items())
            raise DescriptionError(
                f"{self.file}: {layer} is one layer here, and its parts have different types "
                f"({listed}). Quantize them all to one type, or leave them all in float."
            )
        (kind,) = kinds
        if kind is None:
            raise DescriptionError(
                f"{self.file} has no type for {' or '.join(f'{part}.weight' for part in types)}. "
                "Copy the description and the weights from the same run of msModelSlim."
            )
        return kind

    def parts(self, layer: str) -> tuple[str, ...]:
        """Return the layers on disk of a layer of the network: itself, or those it is fused of."""
        return (layer,) if f"{layer}.weight" in self.types else layer_parts(layer)


@lru_cache(maxsize=16)
def _read(path: Path, changed: int, size: int) -> Description:
    """Return what a file says; the other arguments tell a changed file from the one before."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DescriptionError(f"{path} cannot be read ({error}). Copy it again.") from error
    if not isinstance(content, dict):
        raise DescriptionError(f"{path} holds no JSON object. Copy it again.")
    return Description.from_json(content, path.name)


def unsupported(description: Description) -> Problem | None:
    """Return the types that nothing here computes, of any tensor or of layers that stay float."""
    found: dict[str, str] = {}  # type to a tensor that has it
    for name, kind in description.on_disk.items():
        layer, _ = split_name(name)
        if kind not in KNOWN_TYPES or (kind != FLOAT and last_part(layer) in FLOAT_ONLY):
            found.setdefault(kind, name)
    if not found:
        return None
    listed = ", ".join(f"{kind} for {name!r}" for kind, name in found.items())
    return Problem(
        "checkpoint type",
        f"{description.file} has types that are not supported for these tensors: {listed}",
        f"Quantize the original model again to one of {', '.join((*STATIC, DYNAMIC))}, with its "
        "embeddings, output projection and KV cache in float.",
    )


def find(folder: Path) -> Path | None:
    """Return the description of a checkpoint: the plain one if there is one, else MindIE's.

    Raises:
        DescriptionError: There are several, and none is the plain one.
    """
    plain = folder / DESCRIPTION
    if plain.exists():
        return plain
    renamed = sorted(folder.glob(MINDIE_DESCRIPTIONS))
    if len(renamed) > 1:
        raise DescriptionError(
            f"{folder} holds {', '.join(path.name for path in renamed)}; one description is "
            "needed. Keep one checkpoint in a folder."
        )
    return renamed[0] if renamed else None


def is_described(model: str, revision: str | None) -> bool:
    """Return whether a checkpoint has a description; of a hub model, only the plain one is found.

    Args:
        model: A folder, or a model of the hub.
        revision: The hub model's.
    """
    if os.path.isdir(model):
        return find(Path(model)) is not None

    from vllm.transformers_utils.repo_utils import file_or_path_exists

    return file_or_path_exists(model, DESCRIPTION, revision)


def read_description(model: str, revision: str | None) -> tuple[Path, Description]:
    """Return the folder of a checkpoint and its description, in either form.

    Args:
        model: A folder, or a model of the hub.
        revision: The hub model's.

    Raises:
        DescriptionError: There is none, or it cannot be used.
    """
    folder = local_folder(model, ["*.json"], revision)
    description = Description.read(folder)
    if description is None:
        raise DescriptionError(
            f"--quantization {METHOD} needs {DESCRIPTION}, and {model} has none. Leave "
            "--quantization out for a float checkpoint, or copy the file there."
        )
    return folder, description


def _main_type(types: Mapping[str, str]) -> str:
    """Return the commonest type but float: MindIE's form may not say the whole's."""
    counts = Counter(kind for kind in types.values() if kind != FLOAT)
    return counts.most_common(1)[0][0] if counts else FLOAT
