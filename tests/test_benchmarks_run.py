# SPDX-License-Identifier: Apache-2.0
"""The runner of benchmarks, with stubs in their place; and each benchmark at its smallest."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from benchmarks import run as runner
from benchmarks.report.results import read
from benchmarks.run import BENCHMARKS, Benchmark, chosen, run, run_all
from benchmarks.sides import IN_TREE, OURS, variables

WITHOUT_ENGINE = ("preprocess", "video_memory", "int8_linear")
"""Benchmarks that take seconds. The others start vLLM, mostly twice: `make test-slow` runs them."""

SOAK = Benchmark("soak", None, "", "--seconds 5 --most 1000", "`make soak` runs it")
"""Not among BENCHMARKS. Nor are full_size (a checkpoint of 12 GB), operator_calls (the emulated
NPU) and msmodelslim_reference (msModelSlim), which no test runs."""

ROOT = Path(__file__).resolve().parents[1]
STUB = """
import argparse
from benchmarks.results import add_json_option, write
from benchmarks.report.results import compare

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int)
add_json_option(parser)
options = parser.parse_args()
print("at work")
{then}
"""
GOOD = 'write(options.json, "A stub", [compare("time", "", "ms", [1.0] * options.rounds)])'


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Puts a stub in the place of the module that the runner would start."""
    script = tmp_path / "stub.py"
    python = tmp_path / "python"  # is called with -m and a module, which it ignores
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(runner.sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lambda then: script.write_text(STUB.format(then=then))


def test_a_benchmark_that_works(stub, tmp_path):
    """Guards against arguments that are not passed, and a result that is not found."""
    stub(GOOD)
    output = tmp_path / "out"
    assert run_all([Benchmark("stub", "--rounds 2", "--rounds 9")], True, output)
    (result,) = read(output)
    assert (result.status, result.command) == (
        "measured",
        "python -m benchmarks.stub --rounds 2",
    )
    assert result.rows[0].ours and result.rows[0].ours.rounds == 2
    assert {"vllm", "torch", "transformers", "vllm-glm41v-npu"} <= set(result.versions)
    assert "on an NPU" in result.missing[0].what
    assert (output / "stub.log").read_text() == "at work\n"


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("raise SystemExit('it broke')", "exit code 1; its last lines:\nat work\nit broke"),
        ("", "no result written:\nat work"),
    ],
)
def test_a_benchmark_that_fails(stub, tmp_path, then, said):
    """Guards against a failure that stops the others, or that is not recorded."""
    stub(then)
    output = tmp_path / "out"
    left_out = Benchmark("slow", None, why_not="takes an hour")
    assert not run_all([Benchmark("stub", ""), left_out], True, output)
    slow, failed = read(output)
    assert (slow.status, slow.why) == ("left out", "takes an hour")
    assert (failed.status, failed.why) == ("failed", said)


def test_an_old_result_does_not_stand_for_a_failure(stub, tmp_path):
    """Guards against figures of an earlier run that are taken for this one's."""
    benchmarks = [Benchmark("stub", "--rounds 1")]
    stub(GOOD)
    assert run_all(benchmarks, True, tmp_path / "out")
    stub("")
    assert not run_all(benchmarks, True, tmp_path / "out")


def test_unknown_name():
    """Guards against a mistyped name that runs nothing, without a word."""
    with pytest.raises(SystemExit, match="No benchmark is named networks; there are: preprocess,"):
        chosen(["networks"])


def test_every_benchmark_is_there():
    """Guards against a line of the list without a module, a reason or a word in the documents."""
    texts = [(ROOT / "docs" / name).read_text() for name in ("benchmarks.md", "benchmarks.zh.md")]
    for benchmark in BENCHMARKS:
        assert all(f"| `{benchmark.name}` |" in text for text in texts), benchmark.name
        source = (ROOT / "benchmarks" / f"{benchmark.name}.py").read_text()
        assert "add_json_option(" in source, benchmark.name
        assert bool(benchmark.why_not) == (benchmark.quick is None), benchmark.name


@pytest.mark.parametrize(
    "benchmark",
    [
        pytest.param(
            one, id=one.name, marks=[] if one.name in WITHOUT_ENGINE else [pytest.mark.slow]
        )
        for one in (*BENCHMARKS, SOAK)
    ],
)
def test_every_benchmark_runs(benchmark, tmp_path):
    """Guards against a benchmark that no longer runs with this vLLM, or finds nothing."""
    assert benchmark.smallest
    result = run(Benchmark(benchmark.name, benchmark.smallest), True, tmp_path)
    assert result.status == "measured", result.why
    assert result.rows
    for row in result.rows:
        sides = [side for side in (row.ours, row.theirs) if side]
        assert sides and all(math.isfinite(side.median) for side in sides), row


def test_the_in_tree_side_lacks_our_plugin_alone():
    """Guards against a peer that is ours too, or that has lost the NPU's plugins."""
    ours, theirs = (set(variables(side)["VLLM_PLUGINS"].split(",")) for side in (OURS, IN_TREE))
    assert ours - theirs == {"glm41v_npu"}
    assert ours - {"glm41v_npu"} == theirs - {""}
