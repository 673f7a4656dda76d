# SPDX-License-Identifier: Apache-2.0
"""Quantised forms of the float checkpoints of the tests, by this package's own quantiser."""

from __future__ import annotations

from pathlib import Path

from transformers import Glm4vForConditionalGeneration

from tests.engines import Oracle
from tests.quant.reference import Checkpoint
from vllm_glm41v_npu.quant.quantiser import Request, quantise

SAMPLES = 8
"""Conversations to calibrate on: ranges need not be good here, only the same everywhere."""


def write_quantised(source: Path, folder: Path, kind: str, dtype: str = "float16") -> Path:
    """Quantise `source` to one type, by the quantiser's defaults; returns `folder`."""
    quantise(Request(source, folder, kind, dtype, samples=SAMPLES))
    return folder


class QuantisedOracle(Oracle):
    """transformers over the published formulas.

    Args:
        model: The quantised checkpoint.
        ranks: Over which the inputs of row-parallel layers are split.
    """

    def __init__(self, model: Path, ranks: int = 1) -> None:
        super().__init__(model)
        self.ranks = ranks

    def _load(self) -> Glm4vForConditionalGeneration:
        return Checkpoint(self.path).network(self.ranks)
