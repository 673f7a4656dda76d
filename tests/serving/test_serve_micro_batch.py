# SPDX-License-Identifier: Apache-2.0
"""Micro batch in `glm41v serve`, from its option and from MindIE's config."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.serving.test_serve import changed, serve

MODELS = "BackendConfig.ModelDeployConfig.ModelConfig.models"


def additional(line: str) -> Any:
    words = shlex.split(line)
    return json.loads(words[words.index("--additional-config") + 1])


def with_micro_batch(tmp_path: Path, value: Any) -> Path:
    models = {"glm41v": {"stream_options": {"micro_batch": value}}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changed(MODELS, models)))
    return path


def test_option() -> None:
    """Guards the option in vLLM's form, and that without one there is none."""
    assert additional(serve("model", "--micro-batch").stdout) == {"micro_batch": True}
    assert "additional" not in serve("model").stdout
    own = serve("model", "--micro-batch", "--", "--additional-config", "{}")
    assert own.exit_code == 2 and 'put "micro_batch": true into that one' in own.stderr


def test_mindies_stream_options(tmp_path: Path) -> None:
    """Guards the translation of stream_options.micro_batch, and a value that is no boolean."""
    asked = serve("--config", with_micro_batch(tmp_path, True))
    assert additional(asked.stdout) == {"micro_batch": True}
    assert "stream_options.micro_batch is --additional-config" in asked.stderr
    assert "additional" not in serve("--config", with_micro_batch(tmp_path, False)).stdout
    wrong = serve("--config", with_micro_batch(tmp_path, "yes"))
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert 'is "yes"; expected true or false' in wrong.stderr


@pytest.mark.parametrize("models", [None, "", {}, {"glm41v": {}}, {"glm41v": None}])
def test_other_models_mean_nothing(tmp_path: Path, models: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changed(MODELS, models)))
    assert "additional" not in serve("--config", path).stdout
