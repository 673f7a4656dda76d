# SPDX-License-Identifier: Apache-2.0
"""Questions that need vLLM or transformers, answered in another process.

Importing them runs torch, and on an Ascend machine torch_npu and the CANN libraries, which can end
the process, or never return. `ask` starts that process, and `main` is what it runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_glm41v_npu.backends import UnsupportedBackend, current_backend
from vllm_glm41v_npu.doctor.processes import run
from vllm_glm41v_npu.family import ARCHITECTURE

Json = dict[str, Any]

# The installed commands do not search the current folder, and neither must this.
START = (
    "import sys; sys.path = [path for path in sys.path if path]; "
    "from vllm_glm41v_npu.doctor.child import main; main(sys.argv[1])"
)


def ask(questions: Mapping[str, str], environ: Mapping[str, str], seconds: float) -> Json:
    """Return the answers to `questions`, a mapping of names in QUESTIONS to their subjects.

    A question that could not be answered gets {"error": the reason in one line}.
    """
    command = [sys.executable, "-c", START, json.dumps(questions)]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR"}
    outcome = run(command, quiet | dict(environ), seconds)
    answers: Json = {}
    for line in outcome.stdout.splitlines():
        answers |= json.loads(line)
    reason = outcome.trouble or "no answer"
    return {name: answers.get(name, {"error": reason}) for name in questions}


def main(questions: str) -> None:
    """Answer in JSON, one line a question, so that answers before a crash are kept."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM logs to stdout
    for name, about in json.loads(questions).items():
        try:
            answer = QUESTIONS[name](about)
        except Exception as error:
            lines = str(error).strip().splitlines()
            answer = {"error": ": ".join([type(error).__name__, *lines[:1]])}
        print(json.dumps({name: answer}), file=answers)


def _hub(name: str) -> Json:
    """Find the hub's `name` in the local cache, or fetch its config.json."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return {"config": cached, "fetched": False}
    if constants.HF_HUB_OFFLINE:
        return {"offline": True}
    return {"config": hf_hub_download(name, "config.json"), "fetched": True}


def _config(path: str) -> Json:
    """Return the refusal of this config.json, if any."""
    from vllm_glm41v_npu.checkpoint.config import ConfigError, normalise

    try:
        normalise(json.loads(Path(path).read_text()), path)
    except ConfigError as error:
        return {"refused": str(error)}
    return {}


def _platform(_: str) -> Json:
    """Return the platform that vLLM chose, and the backend of this package that it is."""
    from vllm.platforms import current_platform

    answer: Json = {"platform": type(current_platform).__name__}
    try:
        return answer | {"backend": asdict(current_backend())}
    except UnsupportedBackend as unsupported:
        return answer | {"unsupported": str(unsupported)}


def _model_class(_: str) -> Json:
    """Return the module of the class that vLLM serves the model with, plugins loaded."""
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    return {"module": ModelRegistry.models[ARCHITECTURE].module_name}


QUESTIONS: dict[str, Callable[[str], Json]] = {
    "hub": _hub,
    "config": _config,
    "platform": _platform,
    "model_class": _model_class,
}
