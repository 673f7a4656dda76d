# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint's tensors to the network's parameters.

Both on-disk namings load. Every tensor is checked against the shape that the config demands
before it is copied, and what is missing is named. Four layouts change on the way: q and k rows
(`rope.deinterleave`), the patch embedding (`fold_patch_embed`), the downsampling convolution, and
the modules that are several tensors on disk and one layer here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.utils import WeightsMapper, is_pp_missing_parameter

from vllm_glm41v_npu.checkpoint.folder import plain_name
from vllm_glm41v_npu.checkpoint.shapes import (
    TEXT,
    VISION,
    Shape,
    checkpoint_shapes,
    fused_name,
    part_shapes,
)
from vllm_glm41v_npu.models.norm_bias import take_norm_bias, unwrapped
from vllm_glm41v_npu.models.packed import LayoutError, reorder_channels
from vllm_glm41v_npu.models.rope import deinterleave, head_size, rotary_dim
from vllm_glm41v_npu.models.vision import PIXEL_OFFSET
from vllm_glm41v_npu.processing.pixel_settings import ImageSettings

# The order matters: a newer prefix is replaced before an older one could match its rest.
HF_TO_VLLM = WeightsMapper(
    orig_to_new_prefix={
        "lm_head.": "language_model.lm_head.",
        "model.language_model.": TEXT,
        "model.visual.": VISION,
        "model.": TEXT,
    }
)

VLLM_TO_HF = {
    "language_model.lm_head.": "lm_head.",
    TEXT: "model.language_model.",
    VISION: "model.visual.",
}
VLLM_TO_OLDER_HF = VLLM_TO_HF | {TEXT: "model.", VISION: "visual."}

# Part on disk -> (fused layer, shard).
FUSED = {
    ".q_proj.": (".qkv_proj.", "q"),
    ".k_proj.": (".qkv_proj.", "k"),
    ".v_proj.": (".qkv_proj.", "v"),
    ".gate_proj.": (".gate_up_proj.", 0),
    ".up_proj.": (".gate_up_proj.", 1),
}

HEAD, EMBEDDING = "language_model.lm_head.weight", f"{TEXT}embed_tokens.weight"

# Of a quantized layer that has a deq_scale, which is made of them; some methods do not keep them.
IN_DEQ_SCALE = ("weight_scale", "weight_offset")

# Written by some trainers, computed here.
COMPUTED_SUFFIXES = (".inv_freq", ".position_ids")


class WeightError(ValueError):
    """A tensor of the checkpoint is missing, unknown, or of the wrong shape."""


def vllm_name(disk_name: str) -> str:
    """What a tensor on disk is called in the network, before its parts are fused."""
    return HF_TO_VLLM.apply_list([plain_name(disk_name)])[0]


def fold_patch_embed(
    weight: torch.Tensor, bias: torch.Tensor, settings: ImageSettings
) -> dict[str, torch.Tensor]:
    """Fold the normalisation of pixels into the patch embedding.

    transformers computes `sum over frames t of weight_t . (pixel_t * rescale - mean) / std + bias`.
    With `motion` the second frame's weight, folded, and `proj` the sum of both, the same value is
    `proj . (pixel_0 - PIXEL_OFFSET) + motion . (pixel_1 - pixel_0) + shifted bias`: of a still
    picture, whose frames are equal, only the first product. Worked out in float64.

    Args:
        weight: [hidden, channels, 2, patch, patch].
        bias: [hidden].
        settings: The checkpoint's rescale factor, and mean and standard deviation per channel.

    Returns:
        float32 `proj.weight` and `motion.weight` [hidden, patch^2 * channels], and `proj.bias`
        [hidden].
    """
    channels = (1, -1, 1, 1)
    rescale = settings.rescale_factor
    mean = weight.new_tensor(settings.mean, dtype=torch.float64).view(channels)
    std = weight.new_tensor(settings.std, dtype=torch.float64).view(channels)
    second = weight[:, :, 1].double() / std  # [hidden, channels, patch, patch]
    both = weight[:, :, 0].double() / std + second
    shifted = bias.double() + (both * (PIXEL_OFFSET * rescale - mean)).flatten(1).sum(1)
    folded = {"proj.weight": both * rescale, "motion.weight": second * rescale}
    # [hidden, channels, patch, patch] -> [hidden, patch, patch, channels], as the pixels come
    rows = {name: value.permute(0, 2, 3, 1).flatten(1) for name, value in folded.items()}
    return {name: value.float() for name, value in (rows | {"proj.bias": shifted}).items()}


class WeightLoader:
    """Loads streams of named tensors into the network.

    Args:
        model: The network.
        config: The checkpoint's config.
        settings: How its pictures are normalised.
        quantized: Layers may have other tensors than a float checkpoint's; vLLM's quantization
            methods check those.
        complete: The parameters have values already, so a stream may hold any part of them.
        awq: The checkpoint is AWQ's, whose packed channels have an order of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        settings: ImageSettings,
        quantized: bool = False,
        complete: bool = False,
        awq: bool = False,
    ) -> None:
        self.model = model
        self.shapes = checkpoint_shapes(config)
        self.parts = part_shapes(self.shapes)
        self.tied = config.tie_word_embeddings
        self.awq = awq
        self.text_config = config.text_config
        self.settings = settings
        self.quantized = quantized
        self.complete = complete
        self.patch_embed: dict[str, torch.Tensor] = {}

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Names of the parameters that were filled.

        The first stream must hold the whole checkpoint; later ones, which update weights in place,
        any part of it.

        Raises:
            WeightError: A tensor is unknown, misshapen, or missing.
        """
        params = dict(self.model.named_parameters())
        seen: set[str] = set()
        loaded: set[str] = set()
        twins: dict[str, torch.Tensor] = {}
        older = False
        for disk_name, tensor in unwrapped(weights):
            if disk_name.endswith(COMPUTED_SUFFIXES):
                continue
            older |= disk_name.startswith((VISION, "model.layers."))
            name = vllm_name(disk_name)
            if self.tied and name in (HEAD, EMBEDDING):
                twins[name] = tensor
                if name == HEAD:
                    continue
            self._check(disk_name, name, tensor)
            seen.add(name)
            for target, value in self._convert(disk_name, name, tensor):
                loaded |= self._copy(params, target, value)
        check_twins(twins)
        if not self.complete:
            self._require_all(seen, VLLM_TO_OLDER_HF if older else VLLM_TO_HF)
            self.complete = True
        return loaded

    def _check(self, disk_name: str, name: str, tensor: torch.Tensor) -> None:
        shape = self.shapes.get(name) or self.parts.get(name)
        if self.quantized and shape != tuple(tensor.shape):
            return
        if shape is None:
            raise WeightError(
                f"The checkpoint holds {disk_name!r} of shape {list(tensor.shape)}, which "
                "GLM-4.1V with this config.json does not have. Check that the weights and the "
                "config belong together."
            )
        if tuple(tensor.shape) != shape:
            raise WeightError(
                f"The checkpoint's {disk_name!r} has shape {list(tensor.shape)}; config.json "
                f"demands {list(shape)}. Check that the two belong together."
            )

    def _convert(
        self, disk_name: str, name: str, tensor: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """What to copy where, in the layouts of this network."""
        if name.startswith(VISION + "patch_embed.proj."):
            yield from self._patch_embed(name, tensor)
        elif name.startswith(TEXT) and (".q_proj." in name or ".k_proj." in name):
            yield name, self._deinterleave(disk_name, name, tensor)
        elif name == VISION + "downsample.weight":
            # [out, C, m, m] -> [out, m * m * C]: the patches of a merged token, channels last
            yield name, tensor.permute(0, 2, 3, 1).flatten(1)
        else:
            yield name, tensor

    def _patch_embed(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """All three, once weight and bias have been seen; an update may bring one alone."""
        self.patch_embed[name] = tensor.clone()
        names = [f"{VISION}patch_embed.proj.{part}" for part in ("weight", "bias")]
        if all(part in self.patch_embed for part in names):
            weight, bias = (self.patch_embed[part] for part in names)
            for part, value in fold_patch_embed(weight, bias, self.settings).items():
                yield f"{VISION}patch_embed.{part}", value

    def _deinterleave(self, disk_name: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Rows of q or k in half form; a quantized layer's tensors likewise."""
        layer, _, suffix = name.rpartition(".")
        rows = self.shapes[f"{layer}.weight"][0]
        head_dim, rotated = head_size(self.text_config), rotary_dim(self.text_config)
        reorder = partial(deinterleave, head_dim=head_dim, rotated=rotated)
        try:
            return reorder_channels(suffix, tensor, rows, head_dim, reorder, self.awq)
        except LayoutError as error:
            raise WeightError(
                f"The checkpoint's {disk_name!r} of shape {list(tensor.shape)} has a layout that "
                f"is not known: the {rows} output channels of its layer are to be reordered for "
                "the rotary embedding. Use a checkpoint in another format; docs/quantize.md lists "
                "those that load."
            ) from error

    def _copy(self, params: dict[str, nn.Parameter], name: str, tensor: torch.Tensor) -> set[str]:
        shard: tuple = ()
        for part, (fused, shard_id) in FUSED.items():
            if part in name:
                name, shard = name.replace(part, fused), (shard_id,)
                break
        if is_pp_missing_parameter(name, self.model):
            return set()
        if name not in params:
            layer, _, suffix = name.rpartition(".")
            if suffix in IN_DEQ_SCALE and f"{layer}.deq_scale" in params:
                return set()
            if self.quantized and take_norm_bias(self.model, name, tensor):
                return set()
            raise WeightError(
                f"The checkpoint holds {name!r}, which the quantization method of its layer does "
                "not know. Check that config.json's quantization_config belongs to the weights."
            )
        param = params[name]
        getattr(param, "weight_loader", default_weight_loader)(param, tensor, *shard)
        return {name}

    def _require_all(self, seen: set[str], naming: dict[str, str]) -> None:
        layers = {name.rpartition(".")[0] for name in seen} if self.quantized else set()
        missing = {
            name: shape
            for name, shape in self._expected(seen).items()
            if name not in seen and name.rpartition(".")[0] not in layers
        }
        if not missing:
            return
        to_disk = WeightsMapper(orig_to_new_prefix=naming)
        listed = ", ".join(
            f"{to_disk.apply_list([name])[0]!r} {list(missing[name])}"
            for name in sorted(missing)[:8]
        )
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise WeightError(
            f"The checkpoint lacks {len(missing)} of {len(self.shapes)} tensors: {listed}{more}. "
            "Download it again, or check that config.json belongs to it."
        )

    def _expected(self, seen: set[str]) -> dict[str, Shape]:
        """What the checkpoint must hold: parts of a layer where it holds one of them."""
        found = {name.rpartition(".")[0] for name in seen}
        split = {name for name in self.parts if name.rpartition(".")[0] in found}
        fused = {fused_name(name) for name in split}
        parts = {name: shape for name, shape in self.parts.items() if fused_name(name) in fused}
        return {name: shape for name, shape in self.shapes.items() if name not in fused} | parts


def check_twins(found: dict[str, torch.Tensor]) -> None:
    """An output projection beside a tied embedding must be a copy of it.

    Raises:
        WeightError: It is another, and config.json says to leave it out.
    """
    if not {HEAD, EMBEDDING} <= found.keys():
        return
    head, embedding = found[HEAD], found[EMBEDDING]
    if head.shape != embedding.shape or not torch.equal(head, embedding.to(head.dtype)):
        raise WeightError(
            "The checkpoint's 'lm_head.weight' differs from its embedding, but its config.json "
            "ties the two (tie_word_embeddings). Set tie_word_embeddings to false if the output "
            "projection was trained, or remove it."
        )
