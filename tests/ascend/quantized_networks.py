# SPDX-License-Identifier: Apache-2.0
"""Runs one of the two networks on quantized checkpoints on the emulated chip.

As networks.py, this runs as a program in a process of its own, with vLLM's in-tree class or ours.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from npu_emulator.settings import CHIPS, current_chip
from tests.ascend.networks import _config, attempt, start, start_worker

QKV = ["q_proj", "k_proj", "v_proj"]
FUSED = {
    "glm4v": {"qkv_proj": QKV, "gate_up_proj": ["gate_proj", "up_proj"]},
    "glm4v_text": {"qkv_proj": QKV, "gate_up_proj": ["gate_up_proj"]},
}
"""The fused layers that vllm-ascend does not know; each entry removes one of two errors."""

MISMATCHED = "mismatched"
"""Name of a W8A8 checkpoint made for bfloat16, which is asked for in float16."""

ROWS = 40


def ask(side: str, what: str, checkpoints: dict[str, Path], out: Path) -> dict[str, Any]:
    """Return the results of `what`, a function of FUNCTIONS, with this side's class, by name."""
    folders = json.dumps({name: str(path) for name, path in checkpoints.items()})
    start(side, "tests.ascend.quantized_networks", what, folders, out)
    return json.loads(out.read_text())


# ---- In the process that `ask` starts


@contextmanager
def network(folder: Path):
    """The network with the checkpoint's weights, in the context in which its layers run."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.model_loader import get_model

    config = _config(folder, "float16")
    with set_current_vllm_config(config):
        if not parallel_state.model_parallel_is_initialized():
            start_worker(config)
        yield get_model(vllm_config=config)


def try_with(call: Any, folder: Path) -> dict[str, Any]:
    """Return the result of `call` for the network over a checkpoint, or its error."""
    import torch

    from npu_emulator import emulator

    emulator.install().refused.clear()

    def within() -> Any:
        with torch.inference_mode(), network(folder) as built:
            return call(built)

    return attempt(within)


def breakages(folders: dict[str, Path]) -> dict[str, Any]:
    """The two errors of the mapping, each once those before are taken away; then every type."""
    from vllm_ascend.quantization.modelslim_config import packed_modules_model_mapping

    found = {}
    for model_type in FUSED:
        found[model_type] = try_with(lambda network: True, folders["W8A8"])
        packed_modules_model_mapping[model_type] = FUSED[model_type]
    return found | {name: try_with(look, folder) for name, folder in folders.items()}


def look(network: Any) -> dict[str, Any]:
    """Norms with a bias, what a projection gives, and what the norm before the next one does."""
    from vllm.model_executor.layers.layernorm import RMSNorm

    layer = network.language_model.model.layers[1]
    norms = [module for module in network.modules() if isinstance(module, RMSNorm)]
    return {
        "norm biases": sum(getattr(norm, "bias", None) is not None for norm in norms),
        "projection": attempt(partial(largest_output, layer.self_attn.o_proj)),
        "norm": attempt(partial(norm_dtype, layer)),
    }


def random(rows: int, columns: int) -> Any:
    import torch

    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)).half()


def largest_output(layer: Any) -> float:
    output, _ = layer(random(ROWS, layer.input_size_per_partition).npu())
    return output.abs().max().item()


def norm_dtype(layer: Any) -> str:
    """Return the dtype of qkv_proj's input, with a residual in the norm; compiled on Atlas A2."""
    norm = layer.input_layernorm
    x, residual = (random(ROWS, norm.weight.numel()).npu() for _ in range(2))
    result = norm(x, residual)[0].dtype
    if result.is_floating_point and current_chip() is CHIPS["A2"]:
        return compiled_norm_dtype(layer, x, residual)
    return str(result)


def compiled_norm_dtype(layer: Any, x: Any, residual: Any) -> str:
    """Return the dtype that vllm-ascend's fused norm and quantizer give for a static layer."""
    from vllm.config import get_current_vllm_config
    from vllm_ascend.compilation.passes.norm_quant_fusion_pass import AddRMSNormQuantPattern

    norm, projection = layer.input_layernorm, layer.self_attn.qkv_proj
    fused = AddRMSNormQuantPattern(get_current_vllm_config()).get_replacement()
    scale = projection.aclnn_input_scale
    offset = projection.aclnn_input_offset
    quantized, _ = fused(
        x, residual, norm.weight, scale, projection.aclnn_input_scale_reciprocal, offset
    )
    return str(quantized.dtype)


def layers(folders: dict[str, Path]) -> dict[str, Any]:
    """Return the differences of each layer of each type from its formula; see `compare_all`."""
    return {name: try_with(compare_all, folder)["result"] for name, folder in folders.items()}


def compare_all(network: Any) -> dict[str, dict[str, float]]:
    found = {}
    for name, module in network.named_modules():
        if hasattr(module, "deq_scale"):
            found[name] = compare_static(module) | compare_norms(module)
        elif hasattr(module, "weight_scale"):
            found[name] = compare_dynamic(module)
    return found


def matrix(layer: Any) -> np.ndarray:
    """int64 [N, K], from the order in which the chip's scheme keeps it."""
    weight = layer.weight.data.cpu().numpy().astype(np.int64)
    # vllm-ascend transposes it when it is loaded, or W8A8S on Atlas 310P in every call.
    return weight if type(layer.quant_method.quant_method).__name__ == "SparseScheme" else weight.T


def compare_static(layer: Any) -> dict[str, float]:
    """Steps between the chip's quantizer and the CPU's of float16, and between the results.

    The result is the formula's, rounded to float16 as torch does it, by way of float32.
    """
    import torch

    from vllm_glm41v_npu.cpu import kernels

    x = random(ROWS, layer.input_size_per_partition) * 3
    scale, offset = layer.input_scale.item(), int(layer.input_offset.item())
    x_q = kernels.quantize_static(x, scale, offset, "npu").numpy().astype(np.int64)
    chip = torch.ops.vllm.quantize(
        x.npu(),
        layer.aclnn_input_scale,
        layer.aclnn_input_scale_reciprocal,
        layer.aclnn_input_offset,
    )
    integers = x_q @ matrix(layer).T + layer.quant_bias.cpu().numpy()
    deq_scale = layer.deq_scale.cpu().numpy().astype("<i8").view("<f4")[::2].astype(np.float64)
    want = (integers * deq_scale).astype(np.float32).astype(np.float16)
    got, _ = layer(x.npu())
    return {
        "quantizer": float(np.abs(chip.cpu().numpy() - x_q).max()),
        "result": float(np.abs(got.cpu().numpy() - want).max()),
        "largest": float(np.abs(want).max()),
    }


def compare_norms(layer: Any) -> dict[str, float]:
    """Return how far the fused norm is from its formula, and how many steps it moves.

    The others are those of a norm whose result is rounded to float16 before it is quantized.
    """
    import torch

    from vllm_glm41v_npu.cpu import kernels

    found = {}
    for norm in layer.input_norms if hasattr(layer, "input_norms") else ():
        x, residual = (random(ROWS, norm.weight.numel()) for _ in range(2))
        x = x.flip(0)
        total = (x.float() + residual.float()).half().double()
        rms = (total.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        normed = total / rms * norm.weight.cpu().double()
        scale, offset = layer.input_scale.item(), int(layer.input_offset.item())
        exact = (normed / scale + offset).clamp(-128, 127)
        fused = norm(x.npu(), residual.npu())[0].cpu()
        assert fused.dtype == torch.int8
        unfused = kernels.quantize_static(normed.half(), scale, offset, "npu")
        found["fused norm"] = (fused.double() - exact).abs().max().item()
        found["moved by rounding"] = (fused != unfused).double().mean().item()
        found["farthest move"] = (fused.int() - unfused.int()).abs().max().item()
    return found


def compare_dynamic(layer: Any) -> dict[str, float]:
    """Return how far the result is from the formula's in float64, in steps of float16."""
    from vllm_glm41v_npu.cpu import kernels

    x = random(ROWS, layer.input_size_per_partition) * 3
    x_q, token_scale = kernels.quantize_per_token(x)
    scale = layer.weight_scale.data.cpu()
    if scale.dtype.is_floating_point:
        scale = scale.double().numpy()
    else:  # bits of a float32, of which a power of two was taken off
        scale = scale.numpy().view("<f4")[::2].astype(np.float64) * layer.taken_off
    integers = x_q.numpy().astype(np.int64) @ matrix(layer).T
    bias = 0 if layer.bias is None else layer.bias.cpu().double().numpy()
    want = integers * scale * token_scale.double().numpy()[:, None]
    got = layer(x.npu())[0].cpu().double().numpy()
    step = 2.0**-10 * np.maximum(np.abs(want), np.abs(want + bias)) + 2.0**-24
    return {"steps": float((np.abs(got - want - bias) / step).max())}


FUNCTIONS = {"breakages": breakages, "layers": layers}

if __name__ == "__main__":
    name, given, result = sys.argv[1:]
    found = FUNCTIONS[name]({key: Path(path) for key, path in json.loads(given).items()})
    Path(result).write_text(json.dumps(found))
