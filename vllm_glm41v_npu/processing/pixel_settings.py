# SPDX-License-Identifier: Apache-2.0
"""Settings of pixels, by a checkpoint's files and by ``mm_processor_kwargs``; `ImageSettings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from vllm.logger import init_logger
from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

from vllm_glm41v_npu.checkpoint.processor_files import PICTURES, Place
from vllm_glm41v_npu.processing.grid import PatchGeometry, PixelLimits

SERVER_KWARGS, REQUEST_KWARGS = "--mm-processor-kwargs", "mm_processor_kwargs"
"""Names in messages of the two places where settings are given."""

_SIZE_KEYS = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
"""The keys of ``size``, misleading names of pixel counts, to clear names."""

PIXEL_KEYS = {"size", *_SIZE_KEYS.values()}
SAMPLING_KEYS = {"fps", "num_frames", "max_frames", "max_duration", "do_sample_frames"}

_NESTED = {"images_kwargs": PIXEL_KEYS, "videos_kwargs": PIXEL_KEYS | SAMPLING_KEYS}
"""transformers' names of the settings for one kind of media, and the keys inside."""

_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
"""The only values this package implements (3 is bicubic)."""

_WITHOUT_EFFECT = {"use_fast", "do_convert_rgb"}
"""Choices between transformers' own processors, none of which runs here."""

logger = init_logger(__name__)

S = TypeVar("S", bound="PixelSettings")


def overrides_for(kind: str, kwargs: Mapping[str, object], source: str) -> dict[str, object]:
    """Return the settings in ``mm_processor_kwargs`` for one kind of media.

    ``kind`` is "images_kwargs" or "videos_kwargs". Keys given under that name win over plain ones.

    Raises:
        ValueError: A key is unknown, at either level. The message names ``source``.
    """
    everything = PIXEL_KEYS | SAMPLING_KEYS | _NESTED.keys()
    if ignored := sorted(kwargs.keys() & _WITHOUT_EFFECT):
        logger.warning_once("%s has %s, which has no effect here.", source, ", ".join(ignored))
    _check_keys(kwargs.keys() - _WITHOUT_EFFECT, everything, source)
    for name, known in _NESTED.items():
        nested = kwargs.get(name, {})
        if not isinstance(nested, Mapping):
            raise ValueError(f"{source} has {name}={nested!r}; expected a mapping.")
        _check_keys(nested.keys() - _WITHOUT_EFFECT, known, f"{source}: {name}")
    merged = {**kwargs, **kwargs.get(kind, {})}  # type: ignore[dict-item]
    return {key: value for key, value in merged.items() if key in _NESTED[kind]}


def _check_keys(found: set[str], known: set[str], source: str) -> None:
    if unknown := sorted(found - known):
        raise ValueError(
            f"{source} has {', '.join(unknown)}, which this model does not know. "
            f"Use {', '.join(sorted(known))}."
        )


@dataclass(frozen=True)
class PixelSettings:
    """Settings that pictures and videos share. The defaults are those of GLM-4.1V-9B-Thinking.

    The processor leaves pixels in 0..255; the vision tower's weights fold in
    ``(pixel * rescale_factor - mean) / std``, per RGB channel.
    """

    limits: PixelLimits = PixelLimits(min_pixels=112 * 112, max_pixels=28 * 28 * 15000)
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255

    PLACE: ClassVar[Place]
    """The files and the section of a checkpoint that hold them."""
    FRAMES: ClassVar[int] = 1
    """Pixels of ``size`` for one of ``min_pixels`` and ``max_pixels``."""

    @classmethod
    def from_pretrained(
        cls: type[S], model: str, revision: str | None, geometry: PatchGeometry
    ) -> S:
        """Read the settings of a checkpoint, a directory or a name on the hub, from the file that
        transformers takes; the defaults where it has none.

        ``ModelConfig.hf_image_processor_config`` would be the natural source, but is empty for
        most checkpoints: transformers 5.5.4 ``get_image_processor_config`` overlooks
        preprocessor_config.json.

        Raises:
            ValueError: As in `from_config`.
        """
        source, config = cls.PLACE.read(lambda name: get_hf_file_to_dict(name, model, revision))
        return cls.from_config(config, geometry, source)

    @classmethod
    def from_config(
        cls: type[S],
        config: Mapping[str, object],
        geometry: PatchGeometry,
        source: str | None = None,
    ) -> S:
        """Read the parsed content of the file called ``source``, the first of `PLACE` by default.

        Raises:
            ValueError: A value is not implemented, or contradicts config.json.
        """
        source = source or cls.PLACE.files[0]
        for key, implemented in _FIXED.items():
            if config.get(key, implemented) != implemented:
                raise ValueError(
                    f"{source} has {key}={config[key]!r}, but only {implemented!r} is supported. "
                    "Use the file of the original checkpoint."
                )
        _check_patch_sizes(config, geometry, source)
        settings = cls(
            mean=_per_channel(config, "image_mean", cls.mean, source),
            std=_per_channel(config, "image_std", cls.std, source),
            rescale_factor=float(config.get("rescale_factor", cls.rescale_factor)),  # type: ignore[arg-type]
        )
        return settings.with_overrides(settings.of_file(config), geometry, source)

    @classmethod
    def of_file(cls, config: Mapping[str, object]) -> dict[str, object]:
        """Return the settings of the file that `with_overrides` takes."""
        return {"size": config["size"]} if "size" in config else {}

    def with_overrides(
        self: S, overrides: Mapping[str, object], geometry: PatchGeometry, source: str
    ) -> S:
        """Return these settings with some of `PIXEL_KEYS` changed.

        ``size`` is ``{"shortest_edge": least, "longest_edge": most}``, either key or both, counted
        over all frames, of which a still picture has two. ``min_pixels`` and ``max_pixels`` win
        over it; for a still picture they count its own pixels, as in other models.

        Raises:
            ValueError: A value is out of range. The message names ``source``.
        """
        limits = replace(self.limits, **_pixel_overrides(overrides, source, self.FRAMES))
        least, most = (pixels // self.FRAMES for pixels in (limits.min_pixels, limits.max_pixels))
        least_max = geometry.pixels_per_token // self.FRAMES
        if most < least_max:
            raise ValueError(
                f"{source} has max_pixels={most}, less than the {least_max} of one "
                f"token. Give at least {least_max}."
            )
        if limits.min_pixels > limits.max_pixels:
            raise ValueError(
                f"{source} leads to min_pixels={least}, more than max_pixels={most}. "
                "Set both so that min_pixels <= max_pixels."
            )
        return replace(self, limits=limits)

    def check_max_pixels(self, allowed: PixelSettings) -> None:
        """Refuse more pixels than the server's settings allow: its memory was set aside for those.

        Raises:
            ValueError: There are more than in ``allowed``.
        """
        asked, most = (each.limits.max_pixels // self.FRAMES for each in (self, allowed))
        if asked > most:
            raise ValueError(
                f"{REQUEST_KWARGS} has max_pixels={asked}, but this server was started for at "
                f"most {most}. Ask for less, or start the server with "
                f"{SERVER_KWARGS} '{{\"max_pixels\": {asked}}}'."
            )


@dataclass(frozen=True)
class ImageSettings(PixelSettings):
    """The picture settings of a checkpoint, transformers' ``Glm4vImageProcessor``."""

    PLACE = PICTURES
    FRAMES = 2


def _pixel_overrides(overrides: Mapping[str, object], source: str, frames: int) -> dict[str, int]:
    """Return the limits as ``size`` counts them."""
    size = overrides.get("size", {})
    if not isinstance(size, Mapping) or size.keys() - _SIZE_KEYS.keys():
        raise ValueError(
            f"{source} has size={size!r}; expected a mapping with shortest_edge and "
            "longest_edge, both pixel counts."
        )
    named = {key: overrides[key] for key in _SIZE_KEYS.values() if key in overrides}
    for key, value in {**size, **named}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{source} has {_SIZE_KEYS.get(key, key)}={value!r}; expected a whole number of "
                "pixels, at least 1."
            )
    pixels = {_SIZE_KEYS[key]: value for key, value in size.items()}
    return pixels | {key: frames * value for key, value in named.items()}  # type: ignore[operator]


def _check_patch_sizes(config: Mapping[str, object], geometry: PatchGeometry, source: str) -> None:
    for key in ("patch_size", "merge_size", "temporal_patch_size"):
        expected = getattr(geometry, key)
        if config.get(key, expected) != expected:
            raise ValueError(
                f"{source} has {key}={config[key]!r}, but vision_config in config.json says "
                f"{expected}. Use the two files of one checkpoint."
            )


def _per_channel(
    config: Mapping[str, object], key: str, default: tuple[float, ...], source: str
) -> tuple[float, ...]:
    values = config.get(key, default)
    if not isinstance(values, (list, tuple)) or len(values) != len(default):
        raise ValueError(f"{source} has {key}={values!r}; expected {len(default)} numbers.")
    return tuple(float(value) for value in values)
