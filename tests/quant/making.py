# SPDX-License-Identifier: Apache-2.0
"""Quantized forms of the float checkpoints of the tests, by this package's own quantizer."""

from __future__ import annotations

import json
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

    def _load(self) -> Glm4vForConditionalGeneration:
        return Checkpoint(self.path).network(self.ranks)
