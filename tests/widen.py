# SPDX-License-Identifier: Apache-2.0
"""The tiny checkpoint with the head size of the real one, which computes the same.

Ascend's attention and rope kernels take heads of 128 channels; the tiny checkpoint's have 32. Here
every hidden state is repeated four times, which leaves the norms' statistics as they are, and each
head's channels move to the places of a wider head that keep their rotary frequency: frequency j of
32 channels is frequency 4 j of 128. Powers of two alone are multiplied with, so the outputs are the
same but for the order of sums.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import TINY

HEAD_DIM = 128


def _spread(rows: torch.Tensor, places: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[heads * small, ...] to [heads * head_dim, ...]: channel i of a head goes to places[i]."""
    small = places.numel()
    heads = rows.reshape(-1, small, *rows.shape[1:])  # [heads, small, ...]
    wide = rows.new_zeros(heads.shape[0], head_dim, *rows.shape[1:])
    wide[:, places] = heads
    return wide.flatten(0, 1)


def _text_places(small: int, factor: int) -> torch.Tensor:
    """Where the decoder's channels go: pairs (2 j, 2 j + 1) of the first half rotate."""
    rotated = small // 2
    pairs = torch.arange(rotated // 2) * factor
    rest = factor * rotated + torch.arange(small - rotated)
    return torch.cat((torch.stack((2 * pairs, 2 * pairs + 1), dim=1).flatten(), rest))


def _vision_places(small: int, factor: int) -> torch.Tensor:
    """Where the vision tower's channels go: (i, i + small / 2) rotate, rows before columns."""
    half = torch.arange(small // 2) * factor  # both axes' frequencies, one after the other
    return torch.cat((half, half + factor * small // 2))


class Widener:
    """Converts the tensors of one checkpoint."""

    def __init__(self, config: dict) -> None:
        text, vision = config["text_config"], config["vision_config"]
        self.small = text["hidden_size"] // text["num_attention_heads"]
        assert self.small == vision["hidden_size"] // vision["num_heads"]
        self.factor = HEAD_DIM // self.small
        self.text_places = _text_places(self.small, self.factor)
        self.vision_places = _vision_places(self.small, self.factor)

    def outputs(self, rows: torch.Tensor) -> torch.Tensor:
        """What writes a hidden state writes every copy of it."""
        return rows.repeat(self.factor, *[1] * (rows.dim() - 1))

    def inputs(self, weight: torch.Tensor) -> torch.Tensor:
        """What reads a hidden state reads its first copy."""
        copies = weight.new_zeros(weight.shape[0], (self.factor - 1) * weight.shape[1])
        return torch.cat((weight, copies), dim=1)

    def heads(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return _spread(rows, places, HEAD_DIM)

    def tensor(self, name: str, t: torch.Tensor) -> torch.Tensor:
        """The tensor `name` of the wide checkpoint."""
        kind = name.rpartition(".")[0].rpartition(".")[2]
        vision = ".visual." in name
        places = self.vision_places if vision else self.text_places
        if "norm" in kind:
            return self.outputs(t)
        if kind in ("q_proj", "k_proj", "v_proj"):
            t = self.heads(t, places) if kind != "v_proj" else self.heads(t, self._plain())
            # Scores are divided by the root of the head size, which doubles.
            t = t * self.factor**0.5 if kind == "q_proj" else t
            return self.inputs(t) if t.dim() == 2 else t
        if kind == "qkv":
            q, k, v = t.chunk(3)
            q = self.heads(q, places) * self.factor**0.5
            parts = (q, self.heads(k, places), self.heads(v, self._plain()))
            return self.inputs(torch.cat(parts))
        if kind == "o_proj" or name.endswith("attn.proj.weight"):
            return self.outputs(self.heads(t.t().contiguous(), self._plain()).t())
        if kind in ("embed_tokens", "position_embedding"):
            return t.repeat(1, self.factor)
        if "patch_embed" in name:
            return self.outputs(t)
        if kind == "downsample":
            if t.dim() == 4:
                t = torch.cat((t, t.new_zeros(t.shape[0], 3 * t.shape[1], *t.shape[2:])), dim=1)
            return self.outputs(t)
        if kind == "lm_head":
            return self.inputs(t)
        return self._mlp(name, kind, t)

    def _mlp(self, name: str, kind: str, t: torch.Tensor) -> torch.Tensor:
        # The vision blocks' MLP is as wide as the decoder, so zeros fill it up.
        blocks = ".visual.blocks." in name
        if kind in ("gate_proj", "up_proj", "gate_up_proj"):
            wide = self.inputs(t)
            filling = wide.new_zeros(3 * t.shape[0] if blocks else 0, wide.shape[1])
            return torch.cat((wide, filling))
        if kind == "down_proj":
            return self.outputs(self.inputs(t) if blocks else t)
        assert name.endswith("merger.proj.weight"), name
        return self.outputs(self.inputs(t))

    def _plain(self) -> torch.Tensor:
        return torch.arange(self.small)


def wide_config(config: dict) -> dict:
    text, vision = config["text_config"], config["vision_config"]
    factor = HEAD_DIM * text["num_attention_heads"] // text["hidden_size"]
    text["hidden_size"] *= factor
    vision["hidden_size"] *= factor
    vision["out_hidden_size"] *= factor
    rope = text["rope_parameters"]
    rope["mrope_section"] = [factor * part for part in rope["mrope_section"]]
    return config


def write_wide_tiny(folder: Path) -> Path:
    """Write the wide form of the tiny checkpoint to `folder`; returns it."""
    shutil.copytree(TINY, folder)
    config = json.loads((TINY / "config.json").read_text())
    widener = Widener(config)
    weights = load_file(TINY / "model.safetensors")
    wide = {
        name: widener.tensor(name, t.float()).contiguous().clone() for name, t in weights.items()
    }
    save_file(wide, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(wide_config(config), indent=1))
    return folder
