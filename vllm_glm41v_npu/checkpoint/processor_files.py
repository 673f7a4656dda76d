# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint with the settings of pictures and videos, and the class they are for.

The order is transformers' own. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_glm41v_npu.checkpoint.problem import Problem

Json = Mapping[str, Any]
Read = Callable[[str], Json | None]
"""A function from the name of a checkpoint's file to the object in it, or None."""

ALL = "processor_config.json"
"""The file in which transformers 5 saves the settings of all processors; it goes first."""


@dataclass(frozen=True)
class Place:
    """A place of settings: a key of ALL, else the first file that is there."""

    section: str
    files: tuple[str, ...]

    def read(self, read: Read) -> tuple[str, Json]:
        """Return the file's name and its settings, which are empty where there is none."""
        everything = read(ALL) or {}
        if self.section in everything:
            return ALL, everything[self.section]
        for name in self.files:
            content = read(name)
            if content is not None:
                return name, content
        return self.files[0], {}


PICTURES = Place("image_processor", ("preprocessor_config.json",))
VIDEOS = Place("video_processor", ("video_preprocessor_config.json", "preprocessor_config.json"))
"""Checkpoints without the first have their videos resized to the limits of pictures."""

VIDEO_CLASS = "Glm4vVideoProcessor"


def unknown_video_class(settings: Json) -> Problem | None:
    """Return why no video of this checkpoint is taken; None where videos are.

    Another class takes other frames and seconds of a video.

    Args:
        settings: Those of VIDEOS.
    """
    named = settings.get("video_processor_type")
    if named is None and "image_processor_type" in settings:
        pictures = str(settings["image_processor_type"]).removesuffix("Fast")
        named = pictures.replace("ImageProcessor", "VideoProcessor")
    if named in (None, VIDEO_CLASS):
        return None
    return Problem(
        "video processor",
        f"This checkpoint's video processor is {named}, which takes other frames and seconds of a "
        f"video than {VIDEO_CLASS}, and is not implemented here",
        "Send pictures and text, which are served; or serve it with vLLM's own class, by leaving "
        "this plugin out with VLLM_PLUGINS.",
        fatal=False,
    )
