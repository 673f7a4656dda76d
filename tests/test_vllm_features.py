# SPDX-License-Identifier: Apache-2.0
"""What vLLM offers with its own class goes on working with this one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from tests.checkpoints import TINY
from tests.end_to_end.cases import CASES, PICTURES, QUESTION
from tests.engines import NEW_TOKENS, Oracle, ask, check_equal, engine, tokens
from tools.tiny.evaluate import final_answer, heldout_sets
from vllm_glm41v_npu.cli.ask import conversation
from vllm_glm41v_npu.patches.media_cache.receiver import MissingMedia

GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with engine(TINY) as started:
        yield started


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(TINY)


def example() -> tuple[Image.Image, str]:
    folder = TINY.parent / "pictures"
    name, number = next(iter(json.loads((folder / "answers.json").read_text()).items()))
    return Image.open(folder / name), number


def test_pictures_of_earlier_turns_stay(llm: LLM, oracle: Oracle) -> None:
    """Guards a conversation of several turns with a picture in each."""
    first, second = conversation([PICTURES[0]], QUESTION), conversation([PICTURES[1]], QUESTION)
    reply = {"role": "assistant", "content": "<think>1</think><answer>1</answer>"}
    (output,) = ask(llm, [[*first, reply, *second]])
    prompt = AutoTokenizer.from_pretrained(TINY).decode(output.prompt_token_ids)
    assert prompt.count("<|begin_of_image|>") == 2
    inputs = oracle.processor(text=[output.prompt or prompt], images=PICTURES[:2])
    assert len(inputs["image_grid_thw"]) == 2
    assert "<answer>1</answer>" in prompt


def test_a_typed_placeholder_without_any_picture_is_text(llm: LLM) -> None:
    """Pins what vLLM does before this package is asked: without media it is a token like others."""
    (output,) = ask(llm, [conversation([], "What is <|image|>?")])
    assert len(tokens(output)) == NEW_TOKENS


def refused(llm: LLM, picture: Image.Image, way: str) -> None:
    """Ask so that vLLM refuses after it has processed the picture."""
    good = conversation([picture], QUESTION)
    chats: list[Any] = [good]
    params = GREEDY
    if way == "too long":
        chats = [conversation([picture], "7" * 8200)]
    elif way == "one of several":
        chats = [good, conversation([picture], "7" * 8200), good]
    elif way == "a typed placeholder":
        chats = [conversation([picture], "<|image|>" + QUESTION)]
    elif way == "a bad grammar":
        params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="(["))
    elif way == "several greedy answers":
        params = GREEDY.clone()
        params.n = 2
        params.temperature = -1.0
    with pytest.raises((ValueError, TypeError)):
        llm.chat(chats, params, use_tqdm=False)


WAYS = (
    "too long",
    "one of several",
    "a typed placeholder",
    "a bad grammar",
    "several greedy answers",
)


@pytest.mark.parametrize("way", WAYS)
def test_a_refused_request_leaves_its_picture_usable(llm: LLM, way: str) -> None:
    """From then on the picture fails, or is answered with nothing, for everybody."""
    number = WAYS.index(way)
    ((question, (picture,), answer),) = heldout_sets(len(WAYS))["written numbers"][number:][:1]
    refused(llm, picture, way)
    for _ in range(2):
        (output,) = llm.chat(conversation([picture], question), GREEDY, use_tqdm=False)
        assert final_answer(output.outputs[0].text) == answer


def test_what_the_engine_lacks_costs_one_request(llm: LLM) -> None:
    """An engine in this process that fails a request leaves the front end waiting for ever."""
    ((question, (picture,), answer),) = heldout_sets(len(WAYS) + 1)["written numbers"][-1:]
    chat = conversation([picture], question)
    llm.chat(chat, GREEDY, use_tqdm=False)
    llm.llm_engine.engine_core.engine_core.mm_receiver_cache._items.popitem()  # planted
    with pytest.raises(MissingMedia, match="Ask again"):
        llm.chat([conversation([], "Hello!"), chat], GREEDY, use_tqdm=False)
    (output,) = llm.chat(chat, GREEDY, use_tqdm=False)
    assert final_answer(output.outputs[0].text) == answer


def named(name: str, picture: Image.Image | None) -> dict[str, Any]:
    """A prompt with a picture that the caller names."""
    image = "<|begin_of_image|><|image|><|end_of_image|>"
    return {
        "prompt": f"[gMASK]<sop><|user|>\n{image}{QUESTION}<|assistant|>\n",
        "multi_modal_data": {"image": [picture]},
        "multi_modal_uuids": {"image": [name]},
    }


def test_a_name_does_not_stand_for_another_picture(llm: LLM) -> None:
    """Two pictures under one name are taken for one; None stands for what was given last."""
    pairs = [(picture, answer) for _, (picture,), answer in heldout_sets(2)["written numbers"]]

    def answer_to(prompt: dict[str, Any]) -> str:
        (output,) = llm.generate([prompt], GREEDY, use_tqdm=False)
        return final_answer(output.outputs[0].text)

    for picture, answer in pairs * 2:
        assert answer_to(named("same", picture)) == answer
        assert answer_to(named("same", None)) == answer
    with pytest.raises(ValueError, match="No image was given under the name 'other'"):
        answer_to(named("other", None))


def test_a_name_without_a_picture_is_refused_in_a_chat(llm: LLM) -> None:
    """Whoever passes on the messages of others would let them ask for each other's pictures."""
    part = {"type": "image_url", "image_url": None, "uuid": "same"}
    text = {"type": "text", "text": QUESTION}
    with pytest.raises(ValueError, match="a uuid does not stand for a picture"):
        llm.chat([{"role": "user", "content": [part, text]}], GREEDY, use_tqdm=False)


def test_updating_weights_in_place(llm: LLM, oracle: Oracle) -> None:
    """Guards updates of a running engine, whole and in parts: other weights count, and go again."""
    weights = list(load_file(TINY / "model.safetensors").items())
    other = [(name, -tensor) for name, tensor in weights if name == "lm_head.weight"]
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(other)})
    (output,) = ask(llm, [CASES["one-picture"]])
    assert tokens(output) != oracle.answer(CASES["one-picture"]).tokens
    for part in (weights, weights[:7], [item for item in weights if "patch_embed" in item[0]][:1]):
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(part)})
    (output,) = ask(llm, [CASES["one-picture"]])
    check_equal(output, oracle.answer(CASES["one-picture"]))


@pytest.mark.parametrize("limit", [0, 1])
def test_embeddings_need_no_vision_tower(limit: int, oracle: Oracle) -> None:
    """Guards the mode for embeddings alone, in which vLLM leaves the tower out."""
    inputs = oracle.inputs(CASES["one-picture"])
    with torch.inference_mode():
        features = oracle.network.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"]
        )
    embeds = {
        "image_embeds": torch.cat(list(features.pooler_output)),
        "image_grid_thw": inputs["image_grid_thw"],
    }
    prompt = oracle.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    with engine(TINY, limit_mm_per_prompt={"image": limit}) as llm:
        (output,) = llm.generate(
            [{"prompt": prompt, "multi_modal_data": {"image": embeds}}],
            SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True),
            use_tqdm=False,
        )
        if limit == 0:
            with pytest.raises(ValueError, match="At most 0 image"):
                ask(llm, [CASES["one-picture"]])
    assert tokens(output) == oracle.answer(CASES["one-picture"]).tokens


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_reads_the_same_number(dtype: str) -> None:
    """Guards the dtypes of the real checkpoint, where a folded or cast tensor may lose too much."""
    picture, number = example()
    with engine(TINY, dtype=dtype) as llm:
        (output,) = llm.chat(conversation([picture], QUESTION), GREEDY, use_tqdm=False)
    assert final_answer(output.outputs[0].text) == number


def test_random_weights_need_no_file(tmp_path: Path) -> None:
    """Guards `--load-format dummy`, with which vLLM is sized and benchmarked."""
    for file in TINY.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    with engine(tmp_path, load_format="dummy") as llm:
        (output,) = ask(llm, [CASES["three-pictures"]])
    assert len(tokens(output)) == NEW_TOKENS


def write_int8(folder: Path) -> None:
    """The tiny checkpoint in compressed-tensors' int8, per output channel and per token."""
    shutil.copytree(TINY, folder)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if "layers" in name and name.endswith("proj.weight")]:
        weight = weights[name].float()
        weights[f"{name}_scale"] = weight.abs().amax(1, keepdim=True) / 127
        weights[name] = (weight / weights[f"{name}_scale"]).round().to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    scheme = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": scheme | {"strategy": "channel", "dynamic": False},
        "input_activations": scheme | {"strategy": "token", "dynamic": True},
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*visual.*"],
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_a_checkpoint_in_vllms_own_int8_still_loads(tmp_path: Path) -> None:
    """Guards quantized checkpoints of other tools, whose q and k rows are permuted with scales."""
    write_int8(tmp_path / "int8")
    picture, number = example()
    with engine(tmp_path / "int8", dtype="bfloat16") as llm:
        (output,) = llm.chat(conversation([picture], QUESTION), GREEDY, use_tqdm=False)
    assert final_answer(output.outputs[0].text) == number


def test_a_config_without_a_vision_part(tmp_path: Path) -> None:
    """Guards the sentence on its way through vLLM's own config check."""
    shutil.copytree(TINY, tmp_path / "text")
    config = json.loads((TINY / "config.json").read_text())
    del config["vision_config"]
    (tmp_path / "text" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'vision_config' is missing"), engine(tmp_path / "text"):
        pass
