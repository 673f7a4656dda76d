# SPDX-License-Identifier: Apache-2.0
"""The quantized checkpoints of the tests, what is asked of them, and the answers' reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor
from vllm import LLM, SamplingParams

from tests.end_to_end.cases import picture
from tests.quant.reference import Checkpoint
from vllm_glm41v_npu.checkpoint.description import DESCRIPTION

DATA = Path(__file__).parents[1] / "data" / "msmodelslim"
TEXT = "Who are you? 0123456789"
IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"
OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 512,
    "enable_mm_embeds": False,
    "max_logprobs": 320,
}
VOCABULARY = 320
NEW_TOKENS = 6


def write_mixed(folder: Path, tower: bool = True) -> Path:
    """All three types in one checkpoint, MindIE's form, and norm biases that are not zero.

    The first layer is W8A8S but for a W8A8 o_proj; the second, the down projections and, with
    `tower`, the vision tower's layers are W8A8_DYNAMIC.
    """
    source = DATA / "w8a8s_fp16"
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    config = json.loads((source / "config.json").read_text())
    config |= {"quantize": "w8a8s", "quantization_config": {"group_size": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "quant_model_weight_w8a8s.safetensors")
    kinds = json.loads((source / "quant_model_description.json").read_text())
    del kinds["version"]
    kinds |= {name: "W8A8" for name in kinds if "layers.0.self_attn.o_proj." in name}
    floats = ("embed", "lm_head") if tower else ("embed", "lm_head", "visual")
    for name in [name for name in kinds if name.endswith(".weight") and tensors[name].dim() == 2]:
        if "layers.1." in name or (kinds[name] == "FLOAT" and not any(x in name for x in floats)):
            make_dynamic(name.removesuffix(".weight"), tensors, kinds)
    generator = torch.Generator().manual_seed(5)
    for name in tensors:
        if "norm" in name and name.endswith(".bias") and "post_projection" not in name:
            tensors[name] = 0.2 * torch.randn(tensors[name].shape, generator=generator)
    wrap_norms(tensors, kinds, "W8A8S")
    save_file(tensors, folder / "quant_model_weight_w8a8s.safetensors")
    (folder / "quant_model_description_w8a8s.json").write_text(json.dumps(kinds))
    return folder


def wrap_norms(tensors: dict[str, torch.Tensor], kinds: dict[str, str], kind: str) -> None:
    """Add each RMSNorm a second time, as msModelSlim does with --mindie_format."""
    for name in [name for name in tensors if "norm" in name and "post_projection" not in name]:
        layer, _, suffix = name.rpartition(".")
        wrapped = f"{layer}.module.{suffix}"
        tensors[wrapped], kinds[wrapped] = tensors[name].clone(), kind


def write_mindie(source: Path, folder: Path) -> Path:
    """What msModelSlim writes of `source`, a fixture, with --mindie_format; returns `folder`.

    Each RMSNorm is there twice, as it is and wrapped; of the wrapped one the tool says the type of
    the layer behind it, and writes floats. The tool's own description is in tests/data.
    """
    shutil.copytree(source, folder)
    plain = folder / DESCRIPTION
    kinds = json.loads(plain.read_text())
    kind = kinds["model_quant_type"]
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    wrap_norms(tensors, kinds, kind)
    del kinds["version"]
    save_file(tensors, weights)
    plain.unlink()
    (folder / f"quant_model_description_{kind.lower()}.json").write_text(json.dumps(kinds))
    config = json.loads((DATA / "w8a8_bf16_mindie" / "config.json").read_text())
    own = json.loads((folder / "config.json").read_text()) | {"quantize": kind.lower()}
    own["quantization_config"] = config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(own))
    return folder


def make_dynamic(layer: str, tensors: dict[str, torch.Tensor], kinds: dict[str, str]) -> None:
    """Quantize a layer by output channel, and leave its bias."""
    weight = tensors[f"{layer}.weight"].float()
    for name in [name for name in tensors if name.startswith(f"{layer}.")]:
        if not name.endswith((".weight", ".bias")):
            del tensors[name], kinds[name]
    scale = (weight.abs().amax(1, keepdim=True) / 127).half()  # [N, 1]
    new = {
        "weight": (weight / scale.float()).round().clamp(-128, 127).to(torch.int8),
        "weight_scale": scale,
        "weight_offset": torch.zeros_like(scale),
    }
    tensors |= {f"{layer}.{name}": tensor.contiguous() for name, tensor in new.items()}
    kinds |= {f"{layer}.{name}": "W8A8_DYNAMIC" for name in new}


def generate(llm: LLM) -> list[Any]:
    """Greedy answers to a text and to a picture, with all first log-probabilities."""
    prompts = [
        {"prompt": TEXT},
        {"prompt": f"{IMAGE}What is it?", "multi_modal_data": {"image": picture(112, 84, 3)}},
    ]
    params = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=VOCABULARY
    )
    return llm.generate(prompts, params, use_tqdm=False)


@torch.inference_mode()
def expected(checkpoint: Checkpoint, prompt_ids: list[list[int]], ranks: int) -> list[torch.Tensor]:
    """float32 [vocabulary] for each prompt: the first log-probabilities."""
    network = checkpoint.network(ranks)
    processor = AutoProcessor.from_pretrained(checkpoint.folder)
    pixels = processor.image_processor(picture(112, 84, 3), return_tensors="pt")
    image_token = network.config.image_token_id
    found = []
    for ids, images in zip(prompt_ids, ({}, pixels), strict=True):
        kinds = torch.tensor([[int(token == image_token) for token in ids]])
        out = network(input_ids=torch.tensor([ids]), mm_token_type_ids=kinds, **images)
        found.append(out.logits[0, -1].log_softmax(-1))
    return found


def check_logits(outputs: list[Any], checkpoint: Checkpoint, ranks: int = 1) -> None:
    """The first token's log-probabilities are the reference's within 1e-3."""
    want = expected(checkpoint, [list(output.prompt_token_ids) for output in outputs], ranks)
    for output, logprobs in zip(outputs, want, strict=True):
        first = output.outputs[0].logprobs[0]
        got = torch.tensor([first[token].logprob for token in range(len(logprobs))])
        torch.testing.assert_close(got, logprobs, atol=1e-3, rtol=0)
