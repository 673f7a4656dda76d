# SPDX-License-Identifier: Apache-2.0
"""Parallel decoding in `glm41v serve`, from options and from MindIE's config."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.serving.test_serve import changed, serve

MODEL = "BackendConfig.ModelDeployConfig.ModelConfig"
PROPOSER = "vllm_glm41v_npu.decoding.proposer.MemoryProposer"


def speculative(line: str) -> dict[str, Any] | None:
    """What vLLM's parser reads of a command."""
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = shlex.split(line)
    words = words[words.index("serve") + 1 :]
    return make_arg_parser(FlexibleArgumentParser()).parse_args(words).speculative_config


def with_plugin(tmp_path: Path, plugin: Any, gamma: int = 16) -> Path:
    text = plugin if isinstance(plugin, str) else json.dumps(plugin)
    config = changed(f"{MODEL}.plugin_params", text)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changed(f"{MODEL}.speculationGamma", gamma, config)))
    return path


def test_options() -> None:
    """Guards the option in vLLM's form, and that without one there is none."""
    result = serve("model", "--parallel-decoding", "memory", "--decoding-length", "8")
    assert result.exit_code == 0, result.stderr
    expected = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": 8}
    assert speculative(result.stdout) == expected
    own = '{"method": "ngram", "num_speculative_tokens": 2}'
    assert speculative(serve("model", "--speculative-config", own).stdout) == json.loads(own)
    assert "speculative" not in serve("model").stdout


def test_mindies_memory_decoding(tmp_path: Path) -> None:
    """Guards the translation of plugin_params, and that an option comes before it."""
    plugin = {"plugin_type": "memory_decoding", "decoding_length": 16, "dynamic_algo": True}
    path = with_plugin(tmp_path, plugin)
    result = serve("--config", path)
    assert result.exit_code == 0, result.stderr
    expected = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": 15}
    assert speculative(result.stdout) == expected
    assert f"{MODEL}.speculationGamma = 16: has to be decoding_length or more" in result.stderr
    found = speculative(serve("--config", path, "--parallel-decoding", "ngram").stdout)
    assert found is not None and found["method"] == "ngram"
    fixed = serve("--config", with_plugin(tmp_path, plugin | {"dynamic_algo": False}))
    assert ".FixedMemoryProposer" in fixed.stdout


@pytest.mark.parametrize("plugin", ["", {"plugin_type": "prefix_cache"}])
def test_other_plugins(tmp_path: Path, plugin: Any) -> None:
    assert "speculative" not in serve("--config", with_plugin(tmp_path, plugin)).stdout


MEMORY = {"plugin_type": "memory_decoding"}


@pytest.mark.parametrize(
    ("plugin", "gamma", "message"),
    [
        ({"plugin_type": "la", "level": 4}, 30, "lookahead decoding, which vLLM does not have"),
        ("memory_decoding", 16, "expected a string of a JSON object with plugin_type"),
        ({"decoding_length": 4}, 16, "expected a string of a JSON object with plugin_type"),
        (MEMORY | {"decoding_length": 17}, 17, "The decoding length is 17; expected 1 to 16"),
        (MEMORY | {"decoding_length": "4"}, 16, 'is "4"; expected a number of 1 or more'),
        (MEMORY | {"dynamic_algo": 1}, 16, "is 1; expected true or false"),
        (MEMORY | {"decoding_length": 8}, 4, "is 4, less than the decoding_length of 8"),
    ],
)
def test_wrong_plugins(tmp_path: Path, plugin: Any, gamma: int, message: str) -> None:
    """Guards the limits that MindIE has too."""
    result = serve("--config", with_plugin(tmp_path, plugin, gamma))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parallel-decoding", "lookahead"], "is not one of"),
        (["--parallel-decoding", "memory", "--decoding-length", "17"], "is 17; expected 1 to 16"),
        (["--parallel-decoding", "ngram", "--dynamic-decoding"], "is of memory, not of ngram"),
        (["--decoding-length", "4"], "needs --parallel-decoding ngram|suffix|memory"),
        (["--speculative-config", "ngram"], "expected a JSON object of vLLM's"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "run"])
def test_wrong_options(command: str, words: list[str], message: str) -> None:
    """Guards a sentence in both commands, before anything is started."""
    from typer.testing import CliRunner

    from vllm_glm41v_npu.cli import app

    given = ["model"] if command == "serve" else ["--prompt", "Hello."]
    result = CliRunner().invoke(app, [command, *given, *words])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
