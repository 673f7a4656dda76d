# SPDX-License-Identifier: Apache-2.0
"""Ours and the oracle: vLLM's engine in this process, and transformers in float32."""

from __future__ import annotations

import base64
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from transformers import AutoProcessor, Glm4vForConditionalGeneration
from transformers.video_utils import VideoMetadata
from vllm import LLM, RequestOutput, SamplingParams
from vllm.multimodal.video import VideoBackend

from tests.lane import DTYPE, ON_CPU

Message = dict[str, Any]
NEW_TOKENS = 32
TOP = 20

# Small enough that a long prompt takes several steps.
STEP_TOKENS = 1024


@contextmanager
def engine(model: Path, **options: Any) -> Iterator[LLM]:
    """vLLM's engine over `model`, in this process unless the options need several."""
    settings: dict[str, Any] = {
        "dtype": DTYPE,
        "enforce_eager": True,
        "max_model_len": 8192,
        "max_num_batched_tokens": STEP_TOKENS,
        "max_num_seqs": 8,
        "limit_mm_per_prompt": {"image": 3, "video": 2},
        "mm_processor_cache_gb": 0.1,
        "kv_cache_memory_bytes": 256 << 20,
        "enable_mm_embeds": True,
    }
    if not ON_CPU:
        # Atlas 310P's worker sizes the cache by this alone; several engines follow in a process.
        settings["gpu_memory_utilization"] = 0.2
        gc.collect()
        torch.npu.empty_cache()  # its profiling wants to see memory taken
    llm = LLM(str(model), **settings | options)
    try:
        yield llm
    finally:
        queues = message_queues(llm)
        llm.llm_engine.engine_core.shutdown()
        # Left to the garbage collector, a context may wait for ever for its sockets.
        for queue in queues:
            queue.local_socket.context.destroy(linger=0)
        del llm
        gc.collect()


def message_queues(llm: LLM) -> list[Any]:
    """To and from ranks that this process started."""
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    executor = getattr(core, "model_executor", None)
    queues = [getattr(executor, "rpc_broadcast_mq", None), *getattr(executor, "response_mqs", [])]
    return [queue for queue in queues if queue is not None]


def ask(llm: LLM, requests: list[list[Message]]) -> list[RequestOutput]:
    """Greedy answers of exactly NEW_TOKENS tokens, with the first step's log-probabilities."""
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=TOP)
    return llm.chat(requests, params, use_tqdm=False)


def tokens(output: RequestOutput) -> list[int]:
    return list(output.outputs[0].token_ids)


def accepted(llm: LLM) -> int:
    """How many guesses of parallel decoding were right, by vLLM's own count."""
    name = "vllm:spec_decode_num_accepted_tokens"
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)


def network_call(llm: LLM, call: Callable[[Any], Any]) -> Any:
    """What `call` returns for the network inside the engine."""
    return llm.apply_model(call)[0]


@dataclass
class Expected:
    """What transformers computes for one request."""

    prompt_ids: list[int]
    tokens: list[int]
    logprobs: torch.Tensor
    """float32 [vocab_size], of the first new token."""


class Oracle:
    """transformers over the same checkpoint."""

    def __init__(self, model: Path) -> None:
        self.path = model

    @cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.path)

    @cached_property
    def network(self) -> Any:
        network = self._load()
        network.generation_config.eos_token_id = None  # always NEW_TOKENS tokens
        network.model.get_placeholder_mask = partial(placeholder_masks, network.config)
        return network.eval()

    def _load(self) -> Any:
        return Glm4vForConditionalGeneration.from_pretrained(self.path, dtype=torch.float32)

    def inputs(self, messages: list[Message]) -> dict[str, torch.Tensor]:
        parts = messages[0]["content"]
        videos = [decode(url_bytes(part)) for part in parts if part["type"] == "video_url"]
        pictures = [part["image_pil"] for part in parts if part["type"] == "image_pil"]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": [template_part(part) for part in parts]}],
            add_generation_prompt=True,
        )
        return self.processor(
            text=text,
            images=pictures or None,
            videos=[frames for frames, _ in videos] or None,
            video_metadata=[metadata for _, metadata in videos] or None,
            return_tensors="pt",
        )

    @torch.inference_mode()
    def answer(self, messages: list[Message], new_tokens: int = NEW_TOKENS) -> Expected:
        inputs = self.inputs(messages)
        out = self.network.generate(
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        length = inputs["input_ids"].shape[1]
        return Expected(
            inputs["input_ids"][0].tolist(),
            out.sequences[0, length:].tolist(),
            out.logits[0][0].float().log_softmax(-1),
        )

    @torch.inference_mode()
    def forced(
        self, messages: list[Message], answer: list[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """Log-probabilities float32 [len(answer), vocab_size] at each token of a given answer.

        Every weight is rounded to `dtype`, and so is what every linear layer and norm returns; the
        arithmetic between is float32's.
        """
        inputs = dict(self.inputs(messages))
        given = torch.tensor([answer])
        inputs["input_ids"] = torch.cat((inputs["input_ids"], given), dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        kinds = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat((kinds, kinds.new_zeros(given.shape)), dim=1)
        with rounded(self.network, dtype):
            logits = self.network(**inputs).logits[0, -len(answer) - 1 : -1]
        return logits.float().log_softmax(-1)


def placeholder_masks(
    config: Any, input_ids: torch.Tensor, inputs_embeds: torch.Tensor, **features: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which embeddings are pictures' and which are videos'.

    transformers' own takes every image token for both, and so refuses a mix.
    """
    depth = (input_ids == config.video_start_token_id).int()
    depth -= (input_ids == config.video_end_token_id).int()
    in_video = depth.cumsum(-1) > 0
    is_medium = input_ids == config.image_token_id
    pictures, videos = (
        (is_medium & where)[..., None].expand_as(inputs_embeds) for where in (~in_video, in_video)
    )
    return pictures, videos


def template_part(part: Message) -> Message:
    """What the chat template sees of a part."""
    return part if part["type"] == "text" else {"type": part["type"].split("_")[0]}


def url_bytes(part: Message) -> bytes:
    return base64.b64decode(part["video_url"]["url"].split(",", 1)[1])


def decode(data: bytes) -> tuple[np.ndarray, VideoMetadata]:
    """Every frame of a file, uint8 RGB [frames, height, width, 3], and what its header says."""
    capture = VideoBackend.open_video_capture(data)
    header = VideoBackend.get_video_metadata(capture)
    frames = []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    metadata = VideoMetadata(
        total_num_frames=header.total_frames_num,
        fps=header.original_fps,
        duration=header.duration,
    )
    return np.stack(frames), metadata


@contextmanager
def rounded(network: Any, dtype: torch.dtype) -> Iterator[None]:
    """Let `network` compute as one that keeps every tensor in `dtype`; float32 changes nothing."""
    if dtype == torch.float32:
        yield
        return
    kept = {name: value.detach().clone() for name, value in network.named_parameters()}
    hooks = []

    def round_output(module: Any, arguments: Any, output: Any) -> Any:
        return output.to(dtype).float() if isinstance(output, torch.Tensor) else output

    try:
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype).float()
        for module in network.modules():
            if not list(module.children()):
                hooks.append(module.register_forward_hook(round_output))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in network.named_parameters():
            parameter.data = kept[name]


def check_equal(output: RequestOutput, want: Expected) -> None:
    """Prompt ids, every token, and the first step's best log-probabilities within 1e-4."""
    assert list(output.prompt_token_ids or []) == want.prompt_ids
    assert output.outputs[0].logprobs is not None
    for token, logprob in output.outputs[0].logprobs[0].items():
        assert abs(logprob.logprob - want.logprobs[token].item()) < 1e-4
    assert tokens(output) == want.tokens


def check_within_rounding(
    output: RequestOutput, messages: list[Message], oracle: Oracle, dtype: str
) -> None:
    """Prompt ids, and every token the best one or, within `dtype`'s rounding, as good as it.

    transformers goes along our answer, once in float32 and once rounded to `dtype`. How far the
    two are apart at a token is what rounding does there, to any candidate: a token of ours may be
    behind the best one by twice that, as both may have moved.
    """
    ours = tokens(output)
    assert list(output.prompt_token_ids or []) == oracle.inputs(messages)["input_ids"][0].tolist()
    exact = oracle.forced(messages, ours, torch.float32)
    rough = oracle.forced(messages, ours, getattr(torch, dtype))
    rounding = (exact - rough).abs().amax(-1)  # [new tokens]
    behind = exact.amax(-1) - exact.gather(1, torch.tensor(ours)[:, None])[:, 0]
    allowed = 2 * rounding
    late = (behind > allowed).nonzero().flatten().tolist()
    assert not late, [
        f"token {place} is behind by {behind[place]:.4f}, allowed {allowed[place]:.4f}"
        for place in late
    ]
    assert output.outputs[0].logprobs is not None
    first = output.outputs[0].logprobs[0]
    off = max(abs(found.logprob - exact[0, token].item()) for token, found in first.items())
    # One token's rounding is one draw; the largest of the answer tells how far it may go.
    assert off <= 2 * rounding.max() + 1e-4, f"off by {off:.4f}, rounding {rounding.tolist()}"


def check(
    output: RequestOutput, messages: list[Message], oracle: Oracle, dtype: str = DTYPE
) -> None:
    """Our answer to `messages` is transformers', as exactly as `dtype` allows."""
    if dtype == "float32":
        check_equal(output, oracle.answer(messages))
    else:
        check_within_rounding(output, messages, oracle, dtype)
