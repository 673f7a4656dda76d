# SPDX-License-Identifier: Apache-2.0
"""Quantized forms of the float checkpoints of the tests, by this package's own quantizer."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Glm4vForConditionalGeneration

from tests.engines import Oracle
from tests.quant.reference import Checkpoint
from vllm_glm41v_npu.checkpoint.description import DESCRIPTION
from vllm_glm41v_npu.quant.quantizer import Request
from vllm_glm41v_npu.quant.quantizer import quantize as quantize

SAMPLES = 8
"""Conversations to calibrate on: ranges need not be good here, only the same everywhere."""


def write_quantized(
    source: Path, folder: Path, kind: str, dtype: str = "float16", also: Sequence[str] = ()
) -> Path:
    """Quantize `source` to one type, the default layers and those of `also`; returns `folder`."""
    quantize(Request(source, folder, kind, dtype, samples=SAMPLES, quantize=also))
    return folder


def write_mixed_types(sources: Sequence[Path], folder: Path) -> Path:
    """Write one checkpoint of several types; returns `folder`.

    Layer i of the decoder is that of the i-th of `sources`, and so on in turn; what is outside the
    decoder's layers is the first one's. All are quantized forms of one float checkpoint.
    """
    shutil.copytree(sources[0], folder)
    tensors: dict[str, torch.Tensor] = {}
    description: dict[str, str] = {}
    for number, source in enumerate(sources):

        def belongs(name: str, number: int = number) -> bool:
            layer = re.search(r"language_model\.layers\.(\d+)\.", name)
            return (int(layer[1]) % len(sources) if layer else 0) == number

        (path,) = source.glob("*.safetensors")
        found = json.loads((source / DESCRIPTION).read_text())
        tensors |= {name: tensor for name, tensor in load_file(path).items() if belongs(name)}
        description |= {name: kind for name, kind in found.items() if belongs(name)}
    (path,) = folder.glob("*.safetensors")
    save_file(tensors, path, metadata={"format": "pt"})
    (folder / DESCRIPTION).write_text(json.dumps(description))
    return folder


def add_norm_biases(folder: Path) -> None:
    """Give every RMSNorm of a quantized checkpoint a bias, in float32 as msModelSlim does."""
    (path,) = folder.glob("*.safetensors")
    description = json.loads((folder / DESCRIPTION).read_text())
    tensors = load_file(path)
    norms = [name for name in tensors if "norm" in name and name.endswith(".weight")]
    generator = torch.Generator().manual_seed(3)
    for name in norms:
        bias = name.replace(".weight", ".bias")
        if bias not in tensors:  # else it is the LayerNorm's
            tensors[bias] = 0.02 * torch.randn(tensors[name].shape, generator=generator)
            description[bias] = "FLOAT"
    save_file(tensors, path, metadata={"format": "pt"})
    (folder / DESCRIPTION).write_text(json.dumps(description))


class QuantizedOracle(Oracle):
    """transformers over the published formulas.

    Args:
        model: The quantized checkpoint.
        ranks: Over which the inputs of row-parallel layers are split.
    """

    def __init__(self, model: Path, ranks: int = 1) -> None:
        super().__init__(model)
        self.ranks = ranks

    def kinds(self) -> dict[str, str]:
        """The type of each quantized layer, by its name on disk."""
        return Checkpoint(self.path).layers()

    def _load(self) -> Glm4vForConditionalGeneration:
        return Checkpoint(self.path).network(self.ranks)
