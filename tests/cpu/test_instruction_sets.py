# SPDX-License-Identifier: Apache-2.0
"""The CPU paths of smaller instruction sets, on any x86 machine, by leaving out instructions.

A machine that lacks a larger set skips it, and says so.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.int8_linear import ONLY_AVX2

ROOT = Path(__file__).resolve().parents[2]
CPUINFO = Path("/proc/cpuinfo")
FLAGS = set(CPUINFO.read_text().split()) if CPUINFO.exists() else set()

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif("avx2" not in FLAGS, reason="this CPU is no x86 with AVX2"),
]


class Held(NamedTuple):
    """An instruction set: the CPU's flag for it, and the variables that leave out what is more."""

    flag: str
    variables: dict[str, str]


SETS = {
    "AVX2": Held("avx2", ONLY_AVX2),
    "VNNI": Held(
        "avx512_vnni", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "ATEN_CPU_CAPABILITY": "avx512"}
    ),
    "AMX": Held("amx_int8", {}),
}
WITH_ENGINE = ("AVX2", "AMX")


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What `instruction_sets.py` finds with a set, each run once."""

    @functools.cache
    def compute(name: str) -> dict[str, Any]:
        held = SETS[name]
        if held.flag not in FLAGS:
            pytest.skip(f"this CPU has no {held.flag}")
        file = tmp_path_factory.mktemp("held") / "found.pt"
        command = [sys.executable, "-m", "tests.cpu.instruction_sets", str(file)]
        command += ["engine"] if name in WITH_ENGINE else []
        done = subprocess.run(
            command, env=os.environ | held.variables, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return torch.load(file)

    return compute


@pytest.mark.parametrize("name", SETS)
def test_int8_products_are_exact_by_the_way_that_is_meant(computed: Callable, name: str) -> None:
    """Guards each way to multiply where another one would be taken on this machine."""
    found = computed(name)
    wrong = [case for case, (_, exact) in found["products"].items() if not exact]
    assert not wrong
    if name == "AVX2":  # the tiles of this package; oneDNN would saturate
        assert found["capability"] == "AVX2"
        assert found["ways"] == {"_multiply": 6, "_multiply_parts": 2}
    else:  # oneDNN's product from 8 tokens on, or 32 where the weight has 4 bits
        assert found["capability"] == "AVX512"
        assert found["ways"] == {"_multiply": 4, "_multiply_in_full": 4}


@pytest.mark.parametrize("name", ["VNNI", "AMX"])
def test_a_larger_set_changes_no_bit(computed: Callable, name: str) -> None:
    """Guards answers that would depend on the machine."""
    larger, smaller = (computed(one)["products"] for one in (name, "AVX2"))
    assert larger.keys() == smaller.keys()
    assert all(torch.equal(larger[case][0], smaller[case][0]) for case in larger)


@pytest.mark.parametrize("name", WITH_ENGINE)
def test_float_layers_are_spaced_on_avx2_alone(computed: Callable, name: str) -> None:
    """Guards a layout that helps where oneDNN reads weights in place, and nowhere else."""
    layer = computed(name)["float layer"]
    spaced = {"AVX2": "SpacedLinearMethod", "AMX": "UnquantizedLinearMethod"}
    assert layer["method"] == spaced[name]
    torch.testing.assert_close(layer["result"], layer["expected"])


@pytest.mark.parametrize("name", WITH_ENGINE)
def test_auto_dtype_follows_the_instructions(computed: Callable, name: str) -> None:
    """Guards against bfloat16 without instructions for it: 7 times as long to the first token."""
    expected = {"AVX2": "torch.float32", "AMX": "torch.bfloat16"}
    assert computed(name)["auto dtype"] == expected[name]


@pytest.mark.parametrize("name", WITH_ENGINE)
def test_the_tiles_are_compiled_for_the_set(computed: Callable, name: str) -> None:
    """Guards the other tests of this file: numba too leaves out what the set has not."""
    features = computed(name)["numba"]
    assert "+avx2" in features
    assert ("+avx512vnni" in features) is (name != "AVX2")


def test_vllm_is_inexact_without_vnni(computed: Callable) -> None:
    """Why there are kernels here: with oneDNN held to AVX2, vLLM's saturates and ours does not."""
    assert computed("AVX2")["vLLM's error"] > 0.05
