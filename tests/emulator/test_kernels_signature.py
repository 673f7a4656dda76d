# SPDX-License-Identifier: Apache-2.0
"""Every kernel takes the arguments of its operator's schema, with their order and defaults.

schemas.json holds the schemas of torch-npu 2.10.0.post4 and vllm-ascend 0.23.0, as their
dispatcher prints them.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch

from npu_emulator.kernels import KERNELS
from npu_emulator.kernels.registry import check_signature, find_schema, register

SCHEMAS = json.loads((Path(__file__).parent / "schemas.json").read_text())


def parse(name: str) -> torch.FunctionSchema:
    return torch._C.parse_schema(SCHEMAS[name])


def test_every_kernel_has_a_schema() -> None:
    assert set(KERNELS) == set(SCHEMAS)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_signature_is_the_schema(name: str) -> None:
    arguments = parse(name).arguments
    parameters = list(inspect.signature(KERNELS[name]).parameters.values())
    assert [p.name for p in parameters] == [a.name for a in arguments]
    for parameter, argument in zip(parameters, arguments, strict=True):
        keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert keyword_only == argument.kwarg_only, argument.name
        if argument.has_default_value() and parameter.default is not inspect.Parameter.empty:
            assert parameter.default == argument.default_value, argument.name


@pytest.mark.parametrize(
    "name", sorted(set(KERNELS) - {"npu::npu_fused_infer_attention_score.out"})
)
def test_defaults_are_not_missing(name: str) -> None:
    parameters = inspect.signature(KERNELS[name]).parameters
    for argument in parse(name).arguments:
        wanted = argument.has_default_value()
        assert wanted == (parameters[argument.name].default is not inspect.Parameter.empty)


def test_register_puts_kernels_on_the_cpu_key() -> None:
    library = torch.library.Library("npu", "FRAGMENT")
    if find_schema("npu::npu_swiglu") is None:
        library.define(SCHEMAS["npu::npu_swiglu"].removeprefix("npu::"))
        assert register() == ["npu::npu_swiglu"]
    x = torch.randn(2, 8)
    expected = KERNELS["npu::npu_swiglu"](x)
    torch.testing.assert_close(torch.ops.npu.npu_swiglu(x), expected)
    assert register() == []


def test_a_kernel_with_other_arguments_is_refused() -> None:
    library = torch.library.Library("npu_test", "DEF")
    library.define("double(Tensor x, int times) -> Tensor")
    with pytest.raises(TypeError, match="takes"):
        check_signature("npu_test::double", lambda x: x)
    with pytest.raises(TypeError, match="no such operator"):
        check_signature("npu_test::triple", lambda x: x)
