# SPDX-License-Identifier: Apache-2.0
"""The real model on a real NPU, for whoever has both: GLM41V_MODEL is the folder of the weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from vllm import LLM, SamplingParams

from tests.checkpoints import TINY
from tests.end_to_end.cases import QUESTION
from vllm_glm41v_npu.cli.ask import conversation

MODEL = os.environ.get("GLM41V_MODEL", "")

pytestmark = [
    pytest.mark.npu,
    pytest.mark.skipif(not MODEL, reason="GLM41V_MODEL names no folder with the real weights"),
]


@pytest.mark.parametrize("devices", [1, 2])
def test_the_real_model_reads_a_number(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the true size on the true chip; one of a 300I DUO's may be too small for all of it."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    assert Path(MODEL).is_dir(), f"GLM41V_MODEL is {MODEL!r}, which is no folder"
    picture = Image.open(TINY.parent / "pictures" / "printed.png")
    llm = LLM(MODEL, tensor_parallel_size=devices, max_model_len=8192)
    try:
        params = SamplingParams(temperature=0, max_tokens=2048)
        (output,) = llm.chat(conversation([picture], QUESTION), params, use_tqdm=False)
        print(output.outputs[0].text)
        assert "6021" in output.outputs[0].text
    finally:
        llm.llm_engine.engine_core.shutdown()
