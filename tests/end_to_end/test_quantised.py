# SPDX-License-Identifier: Apache-2.0
"""Quantised checkpoints, against transformers over the published formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from vllm import LLM

from tests.end_to_end.cases import CASES
from tests.engines import ask, check, engine
from tests.lane import ALL_LANES
from tests.quant.making import QuantisedOracle, write_quantised
from vllm_glm41v_npu.quant.quantiser import TYPES

pytestmark = ALL_LANES

NAMES = ("text", "one-picture", "three-pictures", "long-with-pictures", "two-videos")


class Pair(NamedTuple):
    llm: LLM
    oracle: QuantisedOracle


@pytest.fixture(scope="module", params=TYPES)
def pair(
    request: pytest.FixtureRequest,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("quantised") / request.param
    write_quantised(checkpoint("tiny"), folder, request.param)
    with engine(folder) as llm:
        yield Pair(llm, QuantisedOracle(folder))


@pytest.mark.parametrize("case", NAMES)
def test_a_request_equals_the_formulas(pair: Pair, case: str) -> None:
    """Guards the whole path: which tensors go where, rope rows, biases, scales."""
    (output,) = ask(pair.llm, [CASES[case]])
    check(output, CASES[case], pair.oracle)
