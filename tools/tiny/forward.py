# SPDX-License-Identifier: Apache-2.0
"""The training-time forward of Glm4vForConditionalGeneration, batched for one CPU core.

Same modules, same numbers as the class's own forward (`check_equal` compares them), but attention
runs once for all pictures of a size, a still picture's two equal frames are folded into the patch
weights, and logits are computed at answer tokens only.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Glm4vForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.glm4v.modeling_glm4v import (
    Glm4vRMSNorm,
    Glm4vVisionModel,
    apply_rotary_pos_emb_vision,
)

from tools.tiny.batches import IGNORED, MERGE, NO_DIGIT, PATCH, Batch

MEAN = torch.tensor(OPENAI_CLIP_MEAN).view(1, 3, 1, 1) * 255
STD = torch.tensor(OPENAI_CLIP_STD).view(1, 3, 1, 1) * 255


def initialise(model: Glm4vForConditionalGeneration, seed: int) -> None:
    """Fan-in initialisation; the class's default of 0.02 stays at chance for hundreds of steps."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name.replace("patch_embed", ""):
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
        elif parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.constant_(parameter, 0.5 if "post_self" in name or "post_mlp" in name else 1.0)
    smooth_patch_filters(model.model.visual.patch_embed.proj)


@torch.no_grad()
def smooth_patch_filters(convolution: nn.Conv3d, frequencies: int = 6) -> None:
    """Random sums of low cosines with hardly any mean, so that strokes and not colours are seen.

    Random filters respond most to a patch's mean colour, which the norm after them then lets
    drown the digit. The two frames' weights differ, as in a model that has seen videos.
    """
    out, channels, _, height, width = convolution.weight.shape
    angle = torch.pi / height * torch.outer(torch.arange(frequencies), torch.arange(height) + 0.5)
    waves = angle.cos()  # [frequencies, 14]
    amounts = torch.randn(out, channels, frequencies, frequencies)
    amounts += torch.randn(out, 1, frequencies, frequencies)
    amounts[:, :, 0, 0] *= 0.1
    filters = torch.einsum("ocuv,uy,vx->ocyx", amounts, waves, waves)
    filters /= filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    difference = 0.3 * filters.std() * torch.randn_like(filters)
    convolution.weight[:, :, 0] = filters / 2 + difference
    convolution.weight[:, :, 1] = filters / 2 - difference
    nn.init.normal_(convolution.bias, std=0.5)


def use_fused_norm() -> None:
    """Let every Glm4vRMSNorm of this process run torch's one-call form (same formula)."""
    Glm4vRMSNorm.forward = lambda self, x: F.rms_norm(
        x, x.shape[-1:], self.weight, self.variance_epsilon
    )


def to_patches(pixels: torch.Tensor) -> torch.Tensor:
    """[n, 3, H, W] in 0..255 to normalised patches in merge order [n * patches, 3 * 14 * 14]."""
    n, channels, height, width = pixels.shape
    step = PATCH * MERGE
    cut = ((pixels - MEAN) / STD).view(
        n, channels, height // step, MERGE, PATCH, width // step, MERGE, PATCH
    )
    # [n, H/28, W/28, 2, 2, 3, 14, 14]
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, channels * PATCH * PATCH)


@lru_cache(maxsize=256)
def patch_coordinates(h: int, w: int) -> torch.Tensor:
    """Row and column of each patch in merge order: int64 [h * w, 2]."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    both = torch.stack([rows, columns], -1).view(h // MERGE, MERGE, w // MERGE, MERGE, 2)
    return both.permute(0, 2, 1, 3, 4).reshape(-1, 2)


@lru_cache(maxsize=256)
def rotary(h: int, w: int, quarter: int) -> torch.Tensor:
    """cos and sin of the vision tower's 2-D rope: float32 [2, h * w, 4 * quarter]."""
    frequencies = 1.0 / (10000.0 ** (torch.arange(quarter) / quarter))
    angles = (patch_coordinates(h, w)[:, :, None] * frequencies).flatten(1)
    angles = torch.cat([angles, angles], -1)
    return torch.stack([angles.cos(), angles.sin()])


def position_embedding(visual: Glm4vVisionModel, h: int, w: int) -> torch.Tensor:
    table = visual.embeddings.position_embedding.weight
    side = math.isqrt(len(table))
    size = torch.tensor([h, w], dtype=torch.float32)
    points = ((patch_coordinates(h, w) + 0.5) / size * 2 - 1).flip(-1).view(1, -1, 1, 2)
    image = table.view(side, side, -1).permute(2, 0, 1).unsqueeze(0)
    sampled = F.grid_sample(
        image, points, mode="bicubic", padding_mode="border", align_corners=False
    )
    return sampled[0, :, :, 0].T  # [h * w, hidden]


def embed_patches(convolution: nn.Conv3d, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures [n, 3, H, W] or pairs of frames [n, 2, 3, H, W] to [n * patches, hidden]."""
    weight = convolution.weight  # [hidden, 3, 2, 14, 14]
    if pixels.dim() == 4:  # both frames are the same picture
        return F.linear(to_patches(pixels), weight.sum(2).flatten(1), convolution.bias)
    patches = torch.cat([to_patches(pixels[:, 0]), to_patches(pixels[:, 1])], -1)
    return F.linear(patches, weight.transpose(1, 2).flatten(1), convolution.bias)


def see(visual: Glm4vVisionModel, groups: list[torch.Tensor]) -> torch.Tensor:
    """Merged vision tokens of all groups in order: float32 [tokens, hidden]."""
    grids = [(len(g), g.shape[-2] // PATCH, g.shape[-1] // PATCH) for g in groups]
    lengths = [n * h * w for n, h, w in grids]
    x = torch.cat([embed_patches(visual.patch_embed.proj, g) for g in groups])
    x = visual.post_conv_layernorm(x)
    x = x + torch.cat([position_embedding(visual, h, w).repeat(n, 1) for n, h, w in grids])
    heads, width = visual.blocks[0].attn.num_heads, x.shape[-1]
    cos, sin = torch.cat(
        [rotary(h, w, width // heads // 4).repeat(1, n, 1) for n, h, w in grids], dim=1
    )
    for block in visual.blocks:
        qkv = block.attn.qkv(block.norm1(x)).view(len(x), 3, heads, -1)
        query, key, value = qkv.unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        split = zip(*(t.split(lengths) for t in (query, key, value)), strict=True)
        attended = []
        for (n, h, w), parts in zip(grids, split, strict=True):
            # [n * patches, heads, head_dim] -> [n, heads, patches, head_dim]
            q, k, v = (p.view(n, h * w, heads, -1).transpose(1, 2) for p in parts)
            attended.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
        x = x + block.attn.proj(torch.cat(attended).flatten(1))
        x = x + block.mlp(block.norm2(x))
    x = visual.post_layernorm(x)
    # Conv2d over the 2 x 2 patches of a merged token, as one product over [4 * hidden]
    weight = visual.downsample.weight.permute(0, 2, 3, 1).flatten(1)
    return visual.merger(F.linear(x.view(-1, MERGE**2 * width), weight, visual.downsample.bias))


def read(
    model: Glm4vForConditionalGeneration, batch: Batch, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Hidden states after the decoder and before its last layer: [sequences, tokens, 128].

    With eager attention also what the last layer attends to: [sequences, heads, tokens, tokens].
    """
    eager = model.model.language_model.config._attn_implementation == "eager"
    embedded = model.get_input_embeddings()(batch.input_ids)
    if len(features):
        image = batch.input_ids == model.config.image_token_id
        embedded = embedded.masked_scatter(image.unsqueeze(-1), features[batch.features])
    output = model.model.language_model(
        inputs_embeds=embedded,
        position_ids=batch.positions,
        use_cache=False,
        output_hidden_states=True,
        output_attentions=eager,
    )
    attention = output.attentions[-1] if eager else None
    return output.last_hidden_state, output.hidden_states[-2], attention


def answer_logits(
    model: Glm4vForConditionalGeneration, batch: Batch, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits where the next token is part of an answer, and those tokens."""
    target = batch.labels[:, 1:]
    wanted = target != IGNORED
    return model.lm_head(hidden[:, :-1][wanted]), target[wanted]


def gathered(
    model: Glm4vForConditionalGeneration, batch: Batch, early: torch.Tensor
) -> torch.Tensor:
    """What the two tokens after each picture hold before the last layer: [pictures, 2, 128].

    In a clip the second of them is the time, where the last layer should find the number.
    """
    ends = (batch.input_ids == model.config.image_end_token_id).nonzero()
    row, column = ends.unbind(1)
    return torch.stack([early[row, column], early[row, column + 1]], 1)


def gathering_loss(guesses: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """From [pictures, 2, 4 * 11] for the digits [pictures, 4] of each picture's number."""
    guesses = guesses.view(len(guesses), 2, 4, NO_DIGIT + 1)
    target = numbers.unsqueeze(1).expand(-1, 2, -1)
    return F.cross_entropy(guesses.flatten(0, 2), target.flatten())


def helper_loss(guesses: torch.Tensor, patch_digits: torch.Tensor) -> torch.Tensor:
    """The helper tells the digits of a merged token's four patches: [tokens, 4 * 2 * 11]."""
    classes = NO_DIGIT + 1
    guesses = guesses.view(-1, 2, classes)  # [patches, 2, 11]
    centre, cover = (
        F.cross_entropy(
            guesses[:, i], patch_digits[:, i], torch.tensor([1.0] * NO_DIGIT + [weight])
        )
        for i, weight in ((0, 0.15), (1, 0.5))  # most patches hold no digit
    )
    return centre + cover


def losses(
    model: Glm4vForConditionalGeneration, helper: nn.Linear, batch: Batch, reading: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Answer loss (nan unless `reading`), helper loss, and the share of right answer tokens."""
    features = see(model.model.visual, batch.groups)
    digits = helper_loss(helper(features), batch.patch_digits)
    if not reading:
        return torch.full((), torch.nan), digits, torch.full((), torch.nan)
    logits, target = answer_logits(model, batch, read(model, batch, features)[0])
    right = (logits.argmax(-1) == target).float().mean()
    return F.cross_entropy(logits, target), digits, right


@torch.no_grad()
def exact(model: Glm4vForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """bool [sequences]: greedy decoding would give the whole answer, as every token is the best."""
    features = see(model.model.visual, batch.groups)
    logits, target = answer_logits(model, batch, read(model, batch, features)[0])
    wrong = torch.zeros(batch.labels[:, 1:].shape, dtype=torch.bool)
    wrong[batch.labels[:, 1:] != IGNORED] = logits.argmax(-1) != target
    return ~wrong.any(1)


@torch.no_grad()
def check_equal(model: Glm4vForConditionalGeneration, batch: Batch) -> float:
    """Largest difference of logits from the class's own forward on the same batch."""
    grids, pixels = [], []
    for group in batch.groups:
        pairs = group if group.dim() == 5 else torch.stack([group, group], 1)
        n, _, _, height, width = pairs.shape
        frames = [to_patches(pairs[:, i]).view(-1, 3, PATCH * PATCH) for i in range(2)]
        pixels.append(torch.stack(frames, 2).flatten(1))  # [n * patches, 3 * 2 * 14 * 14]
        grids += [[1, height // PATCH, width // PATCH]] * n
    features = torch.cat(
        model.model.get_image_features(torch.cat(pixels), torch.tensor(grids)).pooler_output
    )
    theirs, _ = answer_logits(model, batch, read(model, batch, features)[0])
    features = see(model.model.visual, batch.groups)
    ours, _ = answer_logits(model, batch, read(model, batch, features)[0])
    return float((theirs - ours).abs().max())
