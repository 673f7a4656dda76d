# SPDX-License-Identifier: Apache-2.0
"""What vLLM's in-tree class gets wrong with quantized checkpoints on vllm-ascend, and ours right.

As test_breakages.py: each test has to fail with the in-tree class in the way beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ascend.quantized_networks import MISMATCHED, ask
from tests.ascend.sides import sides
from tests.ascend.test_breakages import in_tree_fails, on_310p, on_a2
from vllm_glm41v_npu.quant.quantizer import TYPES

pytestmark = pytest.mark.ascend

Found = dict[str, Any]


@pytest.fixture(scope="module")
def asked(
    quantized: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Found]:
    """What quantized_networks.breakages finds for a side, asked once."""

    @functools.cache
    def find(side: str) -> Found:
        checkpoints = {kind: quantized(kind) for kind in TYPES}
        checkpoints[MISMATCHED] = quantized("W8A8", dtype="bfloat16")
        return ask(side, "breakages", checkpoints, tmp_path_factory.mktemp("found") / "found.json")

    return find


@pytest.fixture(params=sides())
def side(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def found(asked: Callable[[str], Found], side: str) -> Found:
    return asked(side)


def works(found: Found) -> Any:
    """The result, where there is one."""
    assert found["error"] is None, found["error"]
    return found["result"]


@pytest.mark.parametrize(
    ("model_type", "missing"),
    [
        ("glm4v", r"^'visual\.blocks\.0\.mlp\.gate_up_proj\.weight'"),
        ("glm4v_text", r"^'language_model\.model\.layers\.0\.mlp\.gate_proj\.weight'"),
    ],
)
def test_fused_layers_are_found(found: Found, side: str, model_type: str, missing: str) -> None:
    """Guards both towers: gate and up are one tensor on disk in one, and two in the other."""
    with in_tree_fails(side, missing):
        assert works(found[model_type])


def test_rms_norms_get_no_bias(found: Found, side: str) -> None:
    """Guards against an addition in each norm because of the one LayerNorm that has a bias."""
    with in_tree_fails(side, r"^[1-9]\d+ norms have one"):
        biases = works(found["W8A8"])["norm biases"]
        assert biases == 0, f"{biases} norms have one"


def test_scales_of_another_dtype_are_refused(found: Found, side: str) -> None:
    """Guards against answers made of zeros: a float32 is no bit pattern in int64."""
    mismatched = found[MISMATCHED]
    with in_tree_fails(side, r"^it gives 0\.0 at most"):
        error, given = mismatched["error"], mismatched["result"]
        assert error is not None, f"it gives {given['projection']['result']} at most"
        assert "was made for bfloat16, and the network is to run in float16" in error


@on_a2("Atlas 310P has it")
def test_sparse_weights_run_on_a2(found: Found, side: str) -> None:
    """Guards W8A8S, which is stored as W8A8 is."""
    with in_tree_fails(side, r"support quant_type=W8A8S for layer_type=linear"):
        assert works(works(found["W8A8S"])["projection"]) > 0


def test_dynamic_layers_are_taken(found: Found, side: str) -> None:
    """Guards W8A8_DYNAMIC: A2's float16 wants scales in float32, 310P has none for tokens."""
    how = r"refuses npu::npu_quant_matmul: (scale is float16|pertoken_scale is float32)"
    with in_tree_fails(side, how):
        assert works(works(found["W8A8_DYNAMIC"])["projection"]) > 0


@on_a2("nothing is fused on Atlas 310P")
def test_a_fused_norm_is_taken_on_a2(found: Found, side: str) -> None:
    """Guards what compiled graphs run in float16, where the scale may not be float16."""
    with in_tree_fails(side, r"refuses npu::npu_add_rms_norm_quant: scales1 is float16"):
        assert works(works(found["W8A8"])["norm"]) == "torch.int8"


@on_310p("vllm-ascend fuses them on Atlas A2")
@pytest.mark.parametrize("kind", ["W8A8", "W8A8S"])
def test_norms_quantize_on_310p(found: Found, side: str, kind: str) -> None:
    """Guards two calls fewer in each decoder layer, and float16 results that nobody reads."""
    with in_tree_fails(side, r"^torch\.float16"):
        dtype = works(works(found[kind])["norm"])
        assert dtype == "torch.int8", dtype
