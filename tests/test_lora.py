# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter answers as the checkpoint with the adapter merged into it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from tests.checkpoints import TINY
from tests.end_to_end.cases import CASES
from tests.engines import NEW_TOKENS, Oracle, ask, engine, tokens

RANK, ALPHA = 4, 8
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


def write_adapter(folder: Path, merged: Path) -> None:
    """A random adapter in peft's layout, and the tiny checkpoint with it merged in."""
    generator = torch.Generator().manual_seed(0)
    shutil.copytree(TINY, merged)
    weights = load_file(merged / "model.safetensors")
    adapter = {}
    for name in weights:
        layer, _, suffix = name.rpartition(".")
        if "language_model" not in name or suffix != "weight" or not layer.endswith(TARGETS):
            continue
        rows, columns = weights[name].shape
        a = torch.randn(RANK, columns, generator=generator) / columns**0.5
        b = torch.randn(rows, RANK, generator=generator) / RANK
        adapter[f"base_model.model.{layer}.lora_A.weight"] = a
        adapter[f"base_model.model.{layer}.lora_B.weight"] = b
        weights[name] = weights[name].float() + ALPHA / RANK * b @ a
    save_adapter(adapter, folder)
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})


def save_adapter(adapter: dict[str, torch.Tensor], folder: Path) -> None:
    folder.mkdir()
    save_file(adapter, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS}
    (folder / "adapter_config.json").write_text(json.dumps(config))


UNKNOWN = {
    "layer": "model.language_model.layers.99.self_attn.o_proj",
    "tower": "model.visual.blocks.0.attn.proj",
    "misspelt": "model.language_model.layer.0.self_attn.q_proj",
    "kind": "model.language_model.layers.0.self_attn.z_proj",
}
"""Modules that the decoder does not have; vLLM itself refuses the last one alone."""


def check_unknown_modules_are_refused(llm: LLM, known: Path, folder: Path) -> None:
    """Add an adapter with good weights and one of an unknown module; the engine serves on."""
    for number, (name, module) in enumerate(UNKNOWN.items(), 2):
        adapter = load_file(known / "adapter_model.safetensors")
        for part, shape in (("A", (RANK, 128)), ("B", (128, RANK))):
            adapter[f"base_model.model.{module}.lora_{part}.weight"] = torch.ones(shape)
        save_adapter(adapter, folder / name)
        with pytest.raises(ValueError, match=module.rsplit(".", 1)[1]):
            llm.llm_engine.add_lora(LoRARequest(name, number, str(folder / name)))


def test_an_adapter_equals_its_merged_checkpoint(tmp_path: Path) -> None:
    """Guards the permutation of q and k: without it an adapter changes answers, but wrongly.

    Adapters that would change nothing, because their names match nothing, are refused between.
    """
    write_adapter(tmp_path / "adapter", tmp_path / "merged")
    merged, plain = Oracle(tmp_path / "merged"), Oracle(TINY)
    request = LoRARequest("random", 1, str(tmp_path / "adapter"))
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    with engine(TINY, enable_lora=True, max_lora_rank=8) as llm:
        check_unknown_modules_are_refused(llm, tmp_path / "adapter", tmp_path)
        for name in ("text", "one-picture"):
            (output,) = llm.chat([CASES[name]], params, use_tqdm=False, lora_request=request)
            assert tokens(output) == merged.answer(CASES[name]).tokens
            (output,) = ask(llm, [CASES[name]])
            assert tokens(output) == plain.answer(CASES[name]).tokens
            assert tokens(output) != merged.answer(CASES[name]).tokens
