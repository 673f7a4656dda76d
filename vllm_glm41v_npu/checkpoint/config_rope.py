# SPDX-License-Identifier: Apache-2.0
"""The rope settings of config.json, which may stand under two keys and at two levels.

transformers 5 writes `rope_parameters`, older releases `rope_scaling`, and model cards tell users
to add one of them. Where several are there, they are merged, and what contradicts is refused:
transformers would take one of them. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

ROPE_TYPES = ("default", "linear", "yarn", "llama3")
BLOCKS = ("rope_parameters", "rope_scaling")
ROPE_KEYS = (*BLOCKS, "rope_theta", "partial_rotary_factor")

SAME_TYPES = {"mrope": "default"}
"""An older name of three-axis rope whose frequencies are not changed."""


class ConfigError(ValueError):
    """A key of config.json is missing or contradicts another."""


def rope_parameters(inner: Mapping[str, Any], outer: Mapping[str, Any], source: str) -> Json:
    """Return the rope settings in the form of transformers 5, complete.

    Args:
        inner: The text settings.
        outer: The rope settings at the top level of the file.
        source: The file, for error messages.

    Raises:
        ConfigError: A setting is missing, contradicts another, or is not implemented.
    """
    rope = _both_levels(_level(inner, source), _level(outer, source), source)
    kind = rope.setdefault("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise ConfigError(
            f"{source}: the rope settings have rope_type {kind!r}; one of "
            f"{', '.join(ROPE_TYPES)} is needed, whose frequencies do not change while running."
        )
    rope.setdefault("rope_theta", 10000.0)
    section = rope.get("mrope_section")
    if not section or not all(isinstance(part, int) and part > 0 for part in section):
        raise ConfigError(
            f"{source}: the rope settings ('rope_parameters', or 'rope_scaling' in older files) "
            f"have mrope_section {section}; a list of positive numbers of frequencies per axis, "
            "such as [8, 12, 12], is needed."
        )
    head_dim = inner["hidden_size"] // inner["num_attention_heads"]
    # The sections say how many pairs of channels rotate, so the factor follows from them.
    rope.setdefault("partial_rotary_factor", 2 * sum(section) / head_dim)
    rotary_dim = int(head_dim * rope["partial_rotary_factor"])
    if 2 * sum(section) != rotary_dim:
        raise ConfigError(
            f"{source}: mrope_section {list(section)} covers {2 * sum(section)} channels of a "
            f"head, but partial_rotary_factor {rope['partial_rotary_factor']} of head size "
            f"{head_dim} rotates {rotary_dim}. The two must agree."
        )
    return rope


def _level(part: Mapping[str, Any], source: str) -> Json:
    """Return the settings of one level; those of `rope_scaling` go beside `rope_parameters`'."""
    rope, added = (_block(part, name, source) for name in BLOCKS)
    for key in rope.keys() & added.keys():
        if rope[key] != added[key] and (key, rope[key]) != ("rope_type", "default"):
            raise ConfigError(
                f"{source}: 'rope_parameters' has {key} {rope[key]} and 'rope_scaling' has "
                f"{added[key]}. Remove the wrong one."
            )
    rope |= added
    for key in ROPE_KEYS[len(BLOCKS) :]:
        if part.get(key) is not None:
            rope.setdefault(key, part[key])
    return rope


def _block(part: Mapping[str, Any], name: str, source: str) -> Json:
    """Return one block, with its type under `rope_type`, which older files call `type`."""
    block = part.get(name)
    if not isinstance(block, Mapping | None):
        raise ConfigError(f"{source}: {name!r} is {block!r}; a mapping is needed.")
    block = {key: value for key, value in (block or {}).items() if value is not None}
    names = [block.pop(key) for key in ("rope_type", "type") if key in block]
    kinds = [SAME_TYPES.get(kind, kind) for kind in names]
    if len(set(kinds)) > 1:
        raise ConfigError(
            f"{source}: {name!r} has rope_type {names[0]!r} and type {names[1]!r}. "
            "Remove the wrong one."
        )
    return block | ({"rope_type": kinds[0]} if kinds else {})


def _both_levels(inner: Json, outer: Json, source: str) -> Json:
    """Return the text settings' own values, unless the top level alone changes the type."""
    if outer.get("rope_type", "default") == "default":
        return outer | inner
    if inner.get("rope_type") == "default":
        del inner["rope_type"]
    for key in sorted(inner.keys() & outer.keys()):
        if inner[key] != outer[key]:
            raise ConfigError(
                f"{source}: the rope settings have {key} {outer[key]} at the top level and "
                f"{inner[key]} in 'text_config'. Remove the wrong one."
            )
    return outer | inner
