# SPDX-License-Identifier: Apache-2.0
"""The published formulas in numpy, and transformers' network over them; nothing of ours.

Source of the formulas: msmodelslim/pytorch/llm_ptq/llm_ptq_tools/save/complex_quantifier.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, Glm4vForConditionalGeneration

Arrays = Mapping[str, np.ndarray]


def array(tensor: torch.Tensor) -> np.ndarray:
    """Floats as float32, integers as they are."""
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def static_integers(x: np.ndarray, layer: Arrays) -> np.ndarray:
    """int64 [M, N]: what a static layer sums up before it dequantizes."""
    steps = np.round(x / layer["input_scale"]) + layer["input_offset"]
    x_q = steps.clip(-128, 127).astype(np.int64)
    return x_q @ layer["weight"].astype(np.int64).T + layer["quant_bias"]


def deq_scale(layer: Arrays) -> np.ndarray:
    """float32 [N], which float16 checkpoints store as its bits in int64."""
    stored = layer["deq_scale"]
    if stored.dtype == np.int64:
        return np.frombuffer(stored.astype("<u4").tobytes(), "<f4")
    return stored


def static_linear(x: np.ndarray, layer: Arrays, ranks: int = 1) -> np.ndarray:
    """float32 [M, N] of W8A8 and W8A8S; the same however many ranks share the inputs."""
    return (static_integers(x, layer) * deq_scale(layer).astype(np.float64)).astype(np.float32)


def dynamic_linear(x: np.ndarray, layer: Arrays, ranks: int = 1) -> np.ndarray:
    """float32 [M, N] of W8A8_DYNAMIC; each of `ranks` scales its own share of the inputs."""
    total = np.zeros((len(x), len(layer["weight"])))
    shares = (np.split(matrix, ranks, axis=1) for matrix in (x, layer["weight"]))
    for part, weight in zip(*shares, strict=True):
        scale = np.abs(part).max(axis=-1, keepdims=True) / np.float32(127)  # [M, 1]
        x_q = np.round(part / np.where(scale == 0, np.float32(1), scale)).astype(np.int64)
        product = x_q @ weight.astype(np.int64).T
        total += product * layer["weight_scale"].astype(np.float64).T * scale
    return (total + layer.get("bias", 0)).astype(np.float32)


ROW_PARALLEL = (".o_proj", ".down_proj", ".attn.proj")
"""Layers whose inputs are split over tensor-parallel ranks."""

LINEAR = {"W8A8": static_linear, "W8A8S": static_linear, "W8A8_DYNAMIC": dynamic_linear}


class ReferenceLinear(nn.Module):
    """A quantized layer in transformers' network."""

    def __init__(self, kind: str, layer: Arrays, ranks: int) -> None:
        super().__init__()
        self.kind, self.layer, self.ranks = kind, layer, ranks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).numpy()  # [M, K]
        y = LINEAR[self.kind](rows, self.layer, self.ranks)
        return torch.from_numpy(y).view(*x.shape[:-1], -1)


class Checkpoint:
    """A folder's tensors and types, by the newer names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (description,) = folder.glob("quant_model_description*.json")
        kinds = json.loads(description.read_text())
        self.description = {name: kind for name, kind in kinds.items() if ".module." not in name}
        self.tensors: dict[str, torch.Tensor] = {}
        for file in folder.glob("*.safetensors"):
            self.tensors |= load_file(file)
        for name in [name for name in self.tensors if ".module." in name]:  # MindIE's form
            self.tensors[name.replace(".module.", ".")] = self.tensors.pop(name)

    def layers(self) -> dict[str, str]:
        """Quantized layer to its type."""
        return {
            name.removesuffix(".weight"): kind
            for name, kind in self.description.items()
            if name.endswith(".weight") and kind != "FLOAT"
        }

    def layer(self, name: str) -> dict[str, np.ndarray]:
        """The tensors of one layer."""
        prefix = f"{name}."
        return {
            key.removeprefix(prefix): array(tensor)
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }

    def network(self, ranks: int = 1) -> Glm4vForConditionalGeneration:
        """transformers' network in float32, its quantized layers by the formulas."""
        network = Glm4vForConditionalGeneration(AutoConfig.from_pretrained(self.folder)).float()
        network.load_state_dict({k: v.float() for k, v in self.tensors.items()}, strict=False)
        for name, kind in self.layers().items():
            share = ranks if name.endswith(ROW_PARALLEL) else 1
            network.set_submodule(name, ReferenceLinear(kind, self.layer(name), share))
        for name, bias in self.tensors.items():
            owner, _, suffix = name.rpartition(".")
            if suffix == "bias" and "norm" in owner:
                _add_after(network.get_submodule(owner), bias)
        return network.eval()


def _add_after(norm: nn.Module, bias: torch.Tensor) -> None:
    """What msModelSlim's wrapper does to a norm that has no bias of its own."""
    if isinstance(norm, nn.LayerNorm):
        return
    norm.register_forward_hook(lambda module, arguments, output: output + bias)
