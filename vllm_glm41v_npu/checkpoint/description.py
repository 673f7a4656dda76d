# SPDX-License-Identifier: Apache-2.0
"""quant_model_description.json, in which msModelSlim says how each tensor is stored.

It maps the name of each tensor on disk to a type, beside `model_quant_type` and other keys without
a dot. Two forms exist: the plain one, and msModelSlim's for MindIE, whose file is named after the
type. Neither torch nor vLLM is loaded here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_glm41v_npu.checkpoint.folder import FLOATS, WRAPPER
from vllm_glm41v_npu.checkpoint.problem import Problem

DESCRIPTION = "quant_model_description.json"
MINDIE_DESCRIPTIONS = "quant_model_description_*.json"

METHOD = "ascend"
"""What `--quantization` calls these checkpoints, here and in vllm-ascend."""

FLOAT = "FLOAT"
SPARSE = "W8A8S"
STATIC = ("W8A8", SPARSE)
DYNAMIC = "W8A8_DYNAMIC"
COMPRESSED = "W8A8SC"
"""Of shards for each tensor-parallel rank, whose weights are compressed and named as in vLLM."""
KNOWN_TYPES = (FLOAT, *STATIC, COMPRESSED, DYNAMIC)

FLOAT_ONLY = ("embed_tokens", "position_embedding", "lm_head")
"""Layers whose weight is a matrix, but which nothing computes in int8."""

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Layers here that may be several on disk. The decoder's gate_up_proj is one there too."""

DEQ_SCALE_DTYPES = {"I64": "float16", "F32": "bfloat16"}
"""How msModelSlim stores deq_scale, and the dtype that the checkpoint was made for."""


class DescriptionError(ValueError):
    """The description cannot be used; the message says why, and what to do."""


@dataclass(frozen=True)
class Rule:
    """What one tensor of a quantized layer has to be.

    dtypes: any of these, as safetensors calls them.
    shape: numbers, or "N" and "K" for the layer's outputs and inputs.
    required: the layer does not compute without it.
    """

    dtypes: tuple[str, ...]
    shape: tuple[int | str, ...]
    required: bool = True

    def sizes(self, n: int, k: int) -> tuple[int, ...]:
        """The shape in a layer of `n` outputs and `k` inputs."""
        sizes = {"N": n, "K": k}
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)


_FLOATS = tuple(FLOATS)
_BY_CHANNEL = {
    "weight": Rule(("I8",), ("N", "K")),
    "weight_scale": Rule(_FLOATS, ("N", 1)),
    "weight_offset": Rule(_FLOATS, ("N", 1), required=False),
    "bias": Rule(_FLOATS, ("N",), required=False),
}
_STATIC = _BY_CHANNEL | {
    "weight_scale": Rule(_FLOATS, ("N", 1), required=False),
    "input_scale": Rule(_FLOATS, (1,)),
    "input_offset": Rule(("I8", *_FLOATS), (1,)),
    "quant_bias": Rule(("I32",), ("N",)),
    "deq_scale": Rule(tuple(DEQ_SCALE_DTYPES), ("N",)),
}
RULES: dict[str, dict[str, Rule]] = {**dict.fromkeys(STATIC, _STATIC), DYNAMIC: _BY_CHANNEL}
"""Type to the tensors of its layers. A static layer's `bias` is held in `quant_bias` too, and its
`weight_scale` in `deq_scale`, so that it computes without them."""


@dataclass(frozen=True)
class Description:
    """What one description says.

    file: its name, for messages.
    kind: the type of the whole checkpoint.
    types: tensor to type.
    extras: its other keys.
    """

    file: str
    kind: str
    types: Mapping[str, str]
    extras: Mapping[str, object]

    @classmethod
    def read(cls, folder: Path) -> Description | None:
        """The description in a checkpoint's folder; None where there is none.

        Raises:
            DescriptionError: It holds no JSON object, or something other than types.
        """
        path = find(folder)
        if path is None:
            return None
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DescriptionError(f"{path} cannot be read ({error}). Copy it again.") from error
        if not isinstance(content, dict):
            raise DescriptionError(f"{path} holds no JSON object. Copy it again.")
        return cls.from_json(content, path.name)

    @classmethod
    def from_json(cls, content: Mapping[str, object], file: str = DESCRIPTION) -> Description:
        """From the parsed file.

        The form for MindIE gives a wrapped norm the type of the layer behind it; its tensors are
        floats all the same.

        Raises:
            DescriptionError: A tensor's type is no string.
        """
        types: dict[str, str] = {}
        for name, kind in content.items():
            if "." not in name:
                continue
            if not isinstance(kind, str):
                raise DescriptionError(
                    f"{file}: {name!r} has the type {kind!r}; a name is needed, one of "
                    f"{', '.join(KNOWN_TYPES)}. Quantize again, or copy the file again."
                )
            types[name] = FLOAT if WRAPPER in name else kind
        extras = {name: value for name, value in content.items() if "." not in name}
        kind = extras.get("model_quant_type") or _main_type(types)
        return cls(file, str(kind), types, extras)

    @property
    def content(self) -> dict[str, object]:
        """What the file would be in the plain form."""
        return {**self.extras, **self.types}

    def renamed(self, rename: Callable[[str], str]) -> Description:
        """With other names of the tensors, such as vLLM's."""
        return replace(self, types={rename(name): kind for name, kind in self.types.items()})

    def layer_type(self, prefix: str) -> str:
        """The type of a layer by its name in vLLM, once the tensors have vLLM's names.

        Raises:
            DescriptionError: It is not described, or its parts have different types.
        """
        types = {part: self.types.get(f"{part}.weight") for part in self.parts(prefix)}
        kinds = set(types.values())
        if len(kinds) > 1:
            listed = ", ".join(f"{part} {kind or 'none'}" for part, kind in types.items())
            raise DescriptionError(
                f"{self.file}: {prefix} is one layer here, and its parts have different types "
                f"({listed}). Quantize them all to one type, or leave them all in float."
            )
        (kind,) = kinds
        if kind is None:
            raise DescriptionError(
                f"{self.file} has no type for {' or '.join(f'{part}.weight' for part in types)}. "
                "Copy the description and the weights from the same run of msModelSlim."
            )
        return kind

    def parts(self, prefix: str) -> tuple[str, ...]:
        """What the layer is on disk: itself, or what it is fused from."""
        parent, _, name = prefix.rpartition(".")
        if name not in FUSED or f"{prefix}.weight" in self.types:
            return (prefix,)
        return tuple(f"{parent}.{part}" if parent else part for part in FUSED[name])


def unsupported(description: Description) -> Problem | None:
    """Types that nothing here computes, of any tensor or of layers that stay in float."""
    found: dict[str, str] = {}  # type to a tensor that has it
    for name, kind in description.types.items():
        layer = name.rpartition(".")[0].rpartition(".")[2]
        if kind not in KNOWN_TYPES or (kind != FLOAT and layer in FLOAT_ONLY):
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
    """The description of a checkpoint: the plain one if there is one, else MindIE's.

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


def _main_type(types: Mapping[str, str]) -> str:
    """The commonest type but float: MindIE's form may not say the whole's."""
    counts = Counter(kind for kind in types.values() if kind != FLOAT)
    return counts.most_common(1)[0][0] if counts else FLOAT
