# SPDX-License-Identifier: Apache-2.0
"""What preprocessor_config.json and ``mm_processor_kwargs`` say about pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vllm.logger import init_logger
from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

from .grid import PatchGeometry, PixelLimits

_FILE = "preprocessor_config.json"
_FILE_WITH_ALL = "processor_config.json"
"""Where transformers 5 saves the same keys, under ``image_processor``; it goes first."""

_SIZE_KEYS = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
"""The keys of ``size`` are pixel counts under misleading names; these are the honest ones."""

_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
"""The only values this package implements (3 is bicubic)."""

_WITHOUT_EFFECT = {"use_fast", "do_convert_rgb"}
"""Choices between transformers' own processors, none of which runs here."""

logger = init_logger(__name__)


@dataclass(frozen=True)
class ImageSettings:
    """The picture settings of a checkpoint. The defaults are those of GLM-4.1V-9B-Thinking.

    The processor leaves pixels in 0..255; whoever feeds them to the vision tower folds
    ``(pixel * rescale_factor - mean) / std`` in, per RGB channel.
    """

    limits: PixelLimits = PixelLimits(min_pixels=112 * 112, max_pixels=28 * 28 * 15000)
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255

    @classmethod
    def from_pretrained(
        cls, model: str, revision: str | None, geometry: PatchGeometry
    ) -> ImageSettings:
        """Read the settings of a checkpoint, a directory or a name on the hub; the defaults where
        it has no such file.

        ``ModelConfig.hf_image_processor_config`` would be the natural source, but is empty for
        most checkpoints: transformers 5.5.4 ``get_image_processor_config`` overlooks
        preprocessor_config.json.

        Raises:
            ValueError: see `from_config`.
        """
        nested = get_hf_file_to_dict(_FILE_WITH_ALL, model, revision) or {}
        if "image_processor" in nested:
            return cls.from_config(nested["image_processor"], geometry, _FILE_WITH_ALL)
        return cls.from_config(get_hf_file_to_dict(_FILE, model, revision) or {}, geometry)

    @classmethod
    def from_config(
        cls, config: Mapping[str, object], geometry: PatchGeometry, source: str = _FILE
    ) -> ImageSettings:
        """Read the parsed content of the file called ``source``.

        Raises:
            ValueError: a value that is not implemented, or contradicts config.json.
        """
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
        if "size" not in config:
            return settings
        return settings.with_overrides({"size": config["size"]}, geometry, source)

    def with_overrides(
        self,
        kwargs: Mapping[str, object],
        geometry: PatchGeometry,
        source: str = "mm_processor_kwargs",
    ) -> ImageSettings:
        """These settings under ``min_pixels``, ``max_pixels`` and ``size``.

        ``size`` is ``{"shortest_edge": min_pixels, "longest_edge": max_pixels}``, either key or
        both; ``min_pixels`` and ``max_pixels`` win over it.

        Raises:
            ValueError: an unknown key, or a value out of range. ``source`` is named in it.
        """
        pixels = _pixel_overrides(kwargs, source)
        limits = replace(self.limits, **pixels)
        least_max = geometry.pixels_per_token
        if limits.max_pixels < least_max:
            raise ValueError(
                f"{source} has max_pixels={limits.max_pixels}, less than the {least_max} of one "
                f"token. Give at least {least_max}."
            )
        if limits.min_pixels > limits.max_pixels:
            raise ValueError(
                f"{source} leads to min_pixels={limits.min_pixels}, more than "
                f"max_pixels={limits.max_pixels}. Set both so that min_pixels <= max_pixels."
            )
        return replace(self, limits=limits)


def _pixel_overrides(kwargs: Mapping[str, object], source: str) -> dict[str, int]:
    if ignored := sorted(kwargs.keys() & _WITHOUT_EFFECT):
        logger.warning_once("%s has %s, which has no effect here.", source, ", ".join(ignored))
        kwargs = {key: value for key, value in kwargs.items() if key not in _WITHOUT_EFFECT}
    known = {"size", *_SIZE_KEYS.values()}
    if unknown := sorted(kwargs.keys() - known):
        raise ValueError(
            f"{source} has {', '.join(unknown)}, which this model does not know. "
            f"Use {', '.join(sorted(known))}."
        )
    size = kwargs.get("size", {})
    if not isinstance(size, Mapping) or size.keys() - _SIZE_KEYS.keys():
        raise ValueError(
            f"{source} has size={size!r}; expected a mapping with shortest_edge and "
            "longest_edge, both pixel counts."
        )
    overrides = {_SIZE_KEYS[key]: value for key, value in size.items()}
    overrides |= {key: value for key, value in kwargs.items() if key != "size"}
    for key, value in overrides.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{source} has {key}={value!r}; expected a whole number of pixels, at least 1."
            )
    return overrides


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
