# SPDX-License-Identifier: Apache-2.0
"""Compute with the instructions that this process may use, and say which way was taken.

    python -m tests.cpu.instruction_sets FILE [engine]

test_instruction_sets.py runs it with variables that leave out instructions of the CPU. Libraries
read these when they start, so each set needs a process. FILE is torch.save's; with `engine`, it
also has what needs vLLM.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from vllm_glm41v_npu.cpu.kernels import int8_matmul, ops, pack_weight

WAYS = ("_multiply_in_full", "_multiply_parts", "_multiply")
SIZES = ((1, 70, 2080), (5, 70, 100), (40, 70, 2080), (200, 300, 2100))
"""Tokens, rows and columns: the last one's rows and columns are enough for parts."""


def int8_numbers(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)


def int8_products() -> dict[str, Any]:
    """Products of both forms of a weight at SIZES, and how often each way was taken."""
    taken: Counter[str] = Counter()

    def counting(name: str) -> Any:
        way = getattr(ops, name)

        def call(*arguments: Any) -> None:
            taken[name] += 1
            way(*arguments)

        return call

    for name in WAYS:
        setattr(ops, name, counting(name))
    found = {}
    for tokens, rows, columns in SIZES:
        x, weight = int8_numbers(tokens, columns, 1), int8_numbers(rows, columns, 2)
        small = torch.where(int8_numbers(rows, columns, 3) > 122, weight, weight // 16)
        for form, numbers in (("int8", weight), ("int4", small)):
            result = int8_matmul(x, pack_weight(numbers, form))  # type: ignore[arg-type]
            exact = x.double() @ numbers.double().t()
            found[f"{form}, {tokens} x {columns} x {rows}"] = (
                result,
                torch.equal(result.double(), exact),
            )
    return {"products": found, "ways": dict(taken)}


def numba_features() -> list[str]:
    """The features of the CPU that numba compiles the tiles for, as LLVM names them."""
    from numba.core.registry import cpu_target

    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return features.split(",")


def float_layer() -> dict[str, Any]:
    """The method and the result of a float32 layer, as `space_weights` leaves it."""
    from torch import nn
    from torch.nn import functional as F

    from tests.cpu.test_float_linear import Layer
    from vllm_glm41v_npu.cpu.float_linear import space_weights

    torch.manual_seed(0)
    layer, x, bias = Layer(128), torch.randn(9, 96), torch.randn(128)
    expected = F.linear(x, layer.weight, bias)
    space_weights(nn.Sequential(layer), torch.float32)
    layer.quant_method.process_weights_after_loading(layer)
    result = layer.quant_method.apply(layer, x, bias)
    return {"method": type(layer.quant_method).__name__, "result": result, "expected": expected}


def auto_dtype() -> str:
    """What vLLM makes of `--dtype auto` for a checkpoint that says bfloat16."""
    import json

    from vllm.config import ModelConfig
    from vllm.plugins import load_general_plugins

    from tests.checkpoints import TINY, link_tiny

    load_general_plugins()
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads((TINY / "config.json").read_text()) | {"dtype": "bfloat16"}
        link_tiny(Path(folder), config)
        return str(ModelConfig(folder).dtype)


def vllm_kernel_error() -> float:
    """The largest error of vLLM's own int8 kernel, as a share of the largest result."""
    from vllm import _custom_ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    x, weight = int8_numbers(16, 512, 1), int8_numbers(64, 512, 2)
    exact = x.double() @ weight.double().t()
    handler = _custom_ops.create_onednn_scaled_mm(
        weight.t(), torch.ones(64), torch.float32, True, False, 32
    )
    out = torch.empty(16, 64)
    _custom_ops.onednn_scaled_mm(handler, x, out, torch.ones(16, 1), None, None, None)
    return float((out - exact).abs().max() / exact.abs().max())


def main() -> None:
    found = {"capability": torch.backends.cpu.get_cpu_capability()} | int8_products()
    if "engine" in sys.argv[2:]:
        found |= {"float layer": float_layer(), "auto dtype": auto_dtype()}
        found |= {"vLLM's error": vllm_kernel_error(), "numba": numba_features()}
    torch.save(found, sys.argv[1])


if __name__ == "__main__":
    main()
