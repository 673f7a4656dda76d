# SPDX-License-Identifier: Apache-2.0
"""Quantized checkpoints, against transformers over the published formulas.

On every backend the same checkpoints, made for float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from vllm import LLM, RequestOutput

from tests.end_to_end.cases import CASES
from tests.end_to_end.conftest import read, wait_for_reports
from tests.end_to_end.test_modes import MODES
from tests.engines import ask, check_within_rounding, engine
from tests.lane import ALL_LANES, DTYPE, EMULATED, ON_CPU, need_two_devices
from tests.quant.cases import write_mindie
from tests.quant.making import (
    QuantizedOracle,
    add_norm_biases,
    write_mixed_types,
    write_quantized,
)
from vllm_glm41v_npu.quant.quantizer import TYPES

pytestmark = ALL_LANES

Quantized = Callable[..., Path]

NAMES = ("text", "one-picture", "three-pictures", "long-with-pictures", "two-videos")
FEW = ("text", "three-pictures")
EVERYWHERE = "everywhere"


def check(output: RequestOutput, case: str, oracle: QuantizedOracle) -> None:
    """As the formulas, within what the rounding of half precision does to them.

    In float32 too: an activation near the middle between two steps of int8 takes the other for the
    last bit of a sum, and one such step moves log-probabilities by 0.01 to 0.1, or none does.
    """
    dtype = "float16" if ON_CPU else DTYPE
    check_within_rounding(output, CASES[case], oracle, dtype)


class Pair(NamedTuple):
    llm: LLM
    oracle: QuantizedOracle


@pytest.mark.skipif(ON_CPU, reason="there are no graphs")
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("W8A8", "default"), ("W8A8_DYNAMIC", "default"), ("W8A8S", "full-decode-only")],
)
def test_graphs_equal_the_formulas(
    kind: str,
    mode: str,
    quantized: Quantized,
    monkeypatch: pytest.MonkeyPatch,
    nothing_refused: Path,
) -> None:
    """Guards compiled layers, in which vllm-ascend fuses norms, and what a replay computes."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    folder = quantized(kind)
    oracle = QuantizedOracle(folder)
    with engine(folder, **MODES[mode]) as llm:
        outputs = ask(llm, [CASES[name] for name in FEW])
        if EMULATED:
            wait_for_reports()
    for output, name in zip(outputs, FEW, strict=True):
        check(output, name, oracle)
    if EMULATED:
        graphs = [report["graphs"] for report in read(nothing_refused)]
        assert any(counts["captures"] and counts["replays"] for counts in graphs), graphs


@pytest.mark.ranks
def test_two_ranks_equal_the_formulas(
    quantized: Quantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards sharded scales and the bias that both ranks would add: a layer of each type.

    Each rank of a dynamic layer scales its own share of the inputs. The files are in MindIE's form.
    """
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    need_two_devices()
    mixed = write_mixed_types([quantized(kind) for kind in TYPES], tmp_path / "mixed")
    folder = write_mindie(mixed, tmp_path / "mindie")
    oracle = QuantizedOracle(folder, ranks=2)
    assert {*oracle.kinds().values()} == {*TYPES}
    with engine(folder, tensor_parallel_size=2) as llm:
        outputs = ask(llm, [CASES[name] for name in FEW])
    for output, name in zip(outputs, FEW, strict=True):
        check(output, name, oracle)


@pytest.fixture(scope="module")
def everywhere(checkpoint: Callable[[str], Path], tmp_path_factory) -> Path:
    """W8A8 in both towers, with a bias in each norm, in the form for MindIE."""
    folder = tmp_path_factory.mktemp("quantized") / EVERYWHERE
    write_quantized(checkpoint("tiny"), folder, "W8A8", also=["model.visual.blocks.*"])
    add_norm_biases(folder)
    return write_mindie(folder, folder.with_name(f"{EVERYWHERE}-mindie"))


# Last in this file: while such an engine is there, others of this process get its environment.
@pytest.fixture(scope="module", params=(*TYPES, EVERYWHERE))
def pair(request: pytest.FixtureRequest, quantized: Quantized, everywhere: Path) -> Iterator[Pair]:
    folder = everywhere if request.param == EVERYWHERE else quantized(request.param)
    with engine(folder) as llm:
        yield Pair(llm, QuantizedOracle(folder))


@pytest.mark.parametrize("case", NAMES)
def test_a_request_equals_the_formulas(pair: Pair, case: str) -> None:
    """Guards the whole path: which tensors go where, rope rows, biases, scales."""
    (output,) = ask(pair.llm, [CASES[case]])
    check(output, case, pair.oracle)
