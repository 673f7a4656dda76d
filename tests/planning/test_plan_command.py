# SPDX-License-Identifier: Apache-2.0
"""`glm41v plan`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vllm_glm41v_npu.cli import app
from vllm_glm41v_npu.planning import live

TINY = Path(__file__).parents[2] / "assets" / "glm41v-tiny"
METRICS = (Path(__file__).parents[1] / "data/vllm_metrics.txt").read_text()
runner = CliRunner()


def plan(*arguments: str, exit_code: int = 0) -> str:
    """What it prints, or where it ends in an error, the error."""
    result = runner.invoke(app, ["plan", *arguments])
    assert result.exit_code == exit_code, result.output
    return result.stderr if exit_code == 2 else result.stdout


def as_json(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
    return json.loads(plan(*arguments, "--json", exit_code=exit_code))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_get", lambda server, _: METRICS)


def test_json():
    """Guards against a document whose parts do not belong together."""
    options = ["--picture", "1024x1024", "--picture", "336x336", "--batch", "8"]
    found = as_json("--card", "910b4", "--count", "2", "--type", "bf16", *options)
    assert (found["card"]["name"], found["chips"], found["type"]) == ("910B4", 2, "BF16")
    assert found["load"]["prompt_tokens"] == 31 + 1369 + 144
    assert found["load"]["context"] == 31 + 1369 + 144 + 1024
    floors = found["floors"]
    parts = floors["vision"]["seconds"] + floors["prefill"]["seconds"]
    assert floors["first_token"]["seconds"] == parts
    assert floors["tokens_per_second"] == 8 / floors["token"]["seconds"]
    memory = found["memory"]
    assert memory["kv_cache"] == memory["usable"] - memory["weights"] - memory["activations"]
    assert memory["sequences"] == memory["kv_tokens"] // memory["context"]
    assert [name for name, figure in found["figures"].items() if figure["guess"]] == [
        "activations",
        "latency",
    ]
    assert found["server"] is None


def test_tables():
    """Guards against a guess that looks like a figure, and figures that are not shown."""
    found = plan("--card", "300I-DUO", "--type", "W8A8SC", "--picture", "1024x1024")
    assert "W8A8SC on 1 x Atlas 300I DUO of 48 GB, two Ascend 310P3: 2 chip(s)" in found
    (first_token,) = (line for line in found.splitlines() if "first of" in line)
    assert first_token.split()[4:6] == ["292", "ms"]  # of 269 ms, with down_proj in 16 bits
    assert found.count("[guess]") == 5  # activations twice, link, latency, compressed weight
    assert "what rests on them is too: activations, link, latency, compressed" in found


@pytest.mark.parametrize("file", ["plan.md", "plan.zh.md"])
def test_example_in_the_docs(monkeypatch, file):
    """Guards against an example that the command does not print."""
    monkeypatch.setenv("COLUMNS", "80")
    text = (TINY.parents[1] / "docs" / file).read_text()
    ((command, expected),) = re.findall(r"\$ glm41v plan (.*)\n((?:.*\n)*?)```", text)
    printed = "\n".join(line.rstrip() for line in plan(*command.split()).splitlines())
    assert re.sub(r"\n{3,}", "\n\n", printed) == expected.rstrip("\n")


def test_what_does_not_fit():
    """Guards against success, or negative room, where the weights are too large."""
    found = as_json("--card", "300I-PRO", exit_code=1)
    assert not found["memory"]["fits"]
    assert (found["memory"]["kv_tokens"], found["memory"]["sequences"]) == (0, 0)
    assert "The weights do not fit" in found["notes"][-1]
    crowded = as_json("--card", "910B4", "--context", "32768", "--batch", "9", exit_code=1)
    assert crowded["notes"][-1] == "Not all of the batch fit: 5 of 9 sequences do."


def test_other_model():
    """Guards against the published sizes for another config.json, and limits of pictures."""
    found = as_json("--card", "910B4", "--model", str(TINY), "--picture", "1024x1024")
    in_float32 = (TINY / "model.safetensors").stat().st_size
    assert found["memory"]["weights"] == pytest.approx(in_float32 / 2, rel=0.05)
    assert found["load"]["pictures"][0]["tokens"] == 16


def test_what_is_known_better():
    """Guards against a figure that is given and still the data sheet's, or called a guess."""
    options = ["--ratio", "0.5", "--memory-gb", "22"]
    found = as_json("--card", "300I-DUO", "--type", "W8A8SC", *options)
    ratio, memory = (found["figures"][name] for name in ("compressed weight", "memory"))
    assert (ratio["value"], ratio["guess"]) == (0.5, False)
    assert memory["value"] == found["memory"]["total"] == 22e9


def test_server(served):
    """Guards against a floor for another load than the one that was measured."""
    options = ["--card", "910B4", "--model", str(TINY), "--server", "http://a/"]
    found = as_json(*options)
    load, server = found["load"], found["server"]
    assert load == load | {"text_tokens": 28.6, "batch": 175 / 38, "context": 28.6 + 35 / 2}
    share = found["floors"]["token"]["seconds"] / server["token"]
    assert server["share_of_floor"]["token"] == share
    assert server["share_of_floor"]["first_token"] < server["share_of_floor"]["prefill"]
    assert "mean of 5 answers" in plan(*options)
    assert as_json(*options, "--batch", "2")["load"]["batch"] == 2


def test_cached_prompts(monkeypatch):
    """Guards against a floor that seems beaten because prompts were not computed."""
    cached = METRICS.replace('cached_total{engine="0",model_name="tiny"} 0', "cached_total 71")
    monkeypatch.setattr(live, "_get", lambda server, _: cached)
    notes = as_json("--card", "910B4", "--server", "http://a")["notes"]
    assert notes[-1].startswith("50% of the prompts' tokens came from the prefix cache")


def test_pictures_that_the_server_did_not_see(served):
    """Guards against a prompt of fewer than no words."""
    arguments = ["--card", "910B4", "--server", "http://a", "--picture", "1024x1024"]
    assert "prompts have 29 tokens on average, fewer" in plan(*arguments, exit_code=2)


def test_no_server():
    """Guards against a traceback where nothing answers."""
    result = runner.invoke(app, ["plan", "--card", "910B4", "--server", "http://127.0.0.1:9"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "http://127.0.0.1:9/metrics does not answer" in result.stderr


def test_without_prometheus_client(served, monkeypatch):
    """Guards against a traceback where vLLM, which brings it, is not installed."""
    monkeypatch.setitem(sys.modules, "prometheus_client.parser", None)
    result = runner.invoke(app, ["plan", "--card", "910B4", "--server", "http://a"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "prometheus_client, which vLLM brings, is not installed" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["910B5"], "'910B5' is not known. Known are 910B4, 910B3, 910B2, 300I-PRO, 300I-DUO"),
        (["300I-DUO", "--type", "BF16"], "does not run BF16. It runs FP16, W8A8, W8A8_DYNAMIC"),
        (["910B4", "--type", "W8A8SC"], "does not run W8A8SC. It runs FP16, BF16, W8A8, W8A8_D"),
        (["910B4", "--type", "INT4"], "'INT4' is not known. Atlas 800I A2, Ascend 910B4 runs FP"),
        (["910B4", "--count", "3"], "3 chips, which cannot share 32 attention heads"),
        (["910B4", "--picture", "10by10"], "'10by10' is no size; expected pixels such as 1920x"),
        (["910B4", "--picture", "0x10"], "so it is empty"),
        (["910B4", "--picture", "10000x10"], "a side ratio of 1000.0"),
        (["910B4", "--context", "30"], "A context of 30 tokens does not do: the prompt has 31"),
        (["910B4", "--context", "65537"], "and the model takes 65,536"),
    ],
)
def test_bad_input(arguments, message):
    """Guards against an error that does not say what to change."""
    assert message in plan("--card", *arguments, exit_code=2)


def test_the_longest_context():
    """Guards a limit that is off by one."""
    found = as_json("--card", "910B3", "--context", "65536")
    assert found["load"]["context"] == 65536


def test_bad_config(tmp_path):
    """Guards against a traceback for a folder without a config.json, or with another model's."""

    def error() -> str:
        return plan("--card", "910B4", "--model", str(tmp_path), exit_code=2)

    assert "config.json is missing, or holds no JSON object" in error()
    config = json.loads((TINY / "config.json").read_text())
    for part, key in (("text_config", "num_hidden_layers"), ("vision_config", "depth")):
        broken = config | {part: config[part] | {key: 0}}
        (tmp_path / "config.json").write_text(json.dumps(broken))
        assert f"config.json has no positive number for {key}." in error()
    del config["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "has no vision_config" in error()


def test_preprocessor_of_transformers_5(tmp_path):
    """Guards against the published limits where the checkpoint keeps its own in another file."""
    shutil.copy(TINY / "config.json", tmp_path)
    size = {"size": {"shortest_edge": 12544, "longest_edge": 50176}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": size}))
    found = as_json("--card", "910B4", "--model", str(tmp_path), "--picture", "1024x1024")
    assert found["load"]["pictures"][0]["tokens"] == 25


def test_starts_without_torch_or_vllm():
    """Guards against a planner that starts slowly, or only where vLLM is installed."""
    code = (
        "import sys; from vllm_glm41v_npu.cli import app\n"
        "not_needed = {'torch', 'vllm', 'transformers', 'prometheus_client'}\n"
        "try: app(['plan', '--card', '910B4', '--picture', '336x336'])\n"
        "finally: print(not_needed & sys.modules.keys(), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert (result.returncode, result.stderr) == (0, "set()\n")
