# SPDX-License-Identifier: Apache-2.0
"""The record of how a folder of W8A8SC shards was made, in the description beside them.

vLLM's loader copies whatever fits into a parameter, so shards made for another split, for another
layout of the network or for another decoder would be served wrong in silence. Neither torch nor
vLLM is loaded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_glm41v_npu.backends import ATLAS_310P, Backend
from vllm_glm41v_npu.checkpoint.description import COMPRESSED, DESCRIPTION, Description

RECORD = "glm41v"
"""The record's key in the description, and that of a file's own in its metadata."""

PORTABLE = "portable-1"
"""The open codec, which the CPU decodes when loading; another number where the format changes."""

CANN = "cann"
"""CANN's own, which Atlas 310P decodes when computing."""

CODECS = (PORTABLE, CANN)

LAYOUT = {"rope_rows": "half", "patch_embed": "proj and motion"}
"""The layouts that are not the checkpoint's: the order of the q and k rows, and the result of
`models.convert.fold_patch_embed`. Shards with another entry are refused; a change of a layout needs
a new word."""

MAKE = "Make them with `glm41v compress` from the W8A8S checkpoint."


class ShardError(ValueError):
    """Shards cannot be loaded; the message says why, and what to do."""


@dataclass(frozen=True)
class Record:
    """The record of one folder.

    codec: one of CODECS.
    tp_size: ranks that the weights are split over.
    encoder_tp_mode: "weights" where the vision tower is split too; vLLM's mm_encoder_tp_mode.
    files: names of each rank's files.
    layout: as LAYOUT.
    """

    codec: str
    tp_size: int
    encoder_tp_mode: str
    files: tuple[tuple[str, ...], ...]
    layout: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "w8a8sc_codec": self.codec,
            "tensor_parallel_size": self.tp_size,
            "mm_encoder_tp_mode": self.encoder_tp_mode,
            "files": [list(names) for names in self.files],
            "layout": dict(self.layout),
        }

    @classmethod
    def from_json(cls, value: Any) -> Record:
        return cls(
            value["w8a8sc_codec"],
            value["tensor_parallel_size"],
            value["mm_encoder_tp_mode"],
            tuple(tuple(names) for names in value["files"]),
            value["layout"],
        )

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Return the record of the shards in `folder`.

        Raises:
            ShardError: There is none, or this version does not know what it says.
        """
        description = Description.read(folder)
        if description is None or description.kind != COMPRESSED:
            kind = "is missing" if description is None else f"says {description.kind}"
            raise ShardError(f"{folder / DESCRIPTION} {kind}; {COMPRESSED} was expected. {MAKE}")
        value = description.extras.get(RECORD)
        if value is None:
            raise ShardError(
                f"The shards in {folder} have no record of how they were made ({RECORD!r} in "
                f"{DESCRIPTION}). Whether their rotary rows and patch embedding are this network's "
                f"cannot be told, and if not, every answer would be wrong. {MAKE}"
            )
        try:
            record = cls.from_json(value)
        except (KeyError, TypeError) as error:
            raise ShardError(
                f"The record {RECORD!r} in {folder / DESCRIPTION} is incomplete ({error}). {MAKE}"
            ) from error
        if record.codec not in CODECS or record.layout != LAYOUT:
            raise ShardError(
                f"The shards in {folder} have the codec {record.codec!r} and the layout "
                f"{dict(record.layout)}; this version reads {' or '.join(CODECS)} and {LAYOUT}. "
                f"{MAKE}"
            )
        return record

    def check_backend(self, backend: Backend) -> None:
        """Raise ShardError where `backend` does not decode these shards."""
        tool = backend.w8a8sc_codec
        if tool is None:
            raise ShardError(
                f"These are shards of {COMPRESSED}, which {ATLAS_310P.name} and CPUs run, and "
                f"{backend.name} does not. Use a float, W8A8, W8A8S or W8A8_DYNAMIC checkpoint "
                "there."
            )
        (readable,) = (codec for codec in CODECS if codec.partition("-")[0] == tool)
        if self.codec != readable:
            raise ShardError(
                f"These shards are compressed with the codec {self.codec}, and {backend.name} "
                f"decodes {readable} alone. Compress the W8A8S checkpoint that they come from "
                f"again, with --codec {tool}."
            )
