# SPDX-License-Identifier: Apache-2.0
"""Beam search that ends a beam at any of the model's end tokens; GLM-4.1V has four."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Any

from vllm.entrypoints.generate.beam_search.utils import BeamSearchOutput, BeamSearchSequence
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import BeamSearchParams, SamplingParams
from vllm.utils import random_uuid
from vllm.utils.async_utils import collect_from_async_generator


def end_tokens(model_config: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end an answer: the tokenizer's, and those of generation_config.json."""
    listed = model_config.try_get_generation_config().get("eos_token_id", [])
    listed = listed if isinstance(listed, list) else [listed]
    return frozenset({tokenizer.eos_token_id, *listed} - {None})


class Beams:
    """The beams of one prompt.

    Args:
        prompt: The engine's form of the prompt, with its media.
        params: Number of beams, longest answer and the like.
        ends: Ids of the end tokens; empty where they are to be ignored.
        lora: vLLM's LoRARequest, where an adapter is asked for.
    """

    def __init__(
        self, prompt: Any, params: BeamSearchParams, ends: Collection[int], lora: Any = None
    ) -> None:
        decoder = prompt if prompt["type"] != "enc_dec" else prompt["decoder_prompt"]
        self.prompt_text: str | None = decoder.get("prompt")
        self.prompt_ids: list[int] = decoder["prompt_token_ids"]
        self.running = [BeamSearchSequence(prompt, self.prompt_ids, [], lora)]
        self._ended: list[BeamSearchSequence] = []
        self._params = params
        self._ends = ends

    def advance(self, outputs: Sequence[CompletionOutput]) -> None:
        """Extend the beams by a token; `outputs` holds the likely next tokens of each one."""
        candidates: list[BeamSearchSequence] = []
        for beam, output in zip(self.running, outputs, strict=True):
            if not output.logprobs:  # no further token fits
                beam.finish_reason = "length"
                self._ended.append(beam)
                continue
            (likely,) = output.logprobs
            candidates += [self._longer(beam, token, likely) for token in likely]
        candidates.sort(key=lambda beam: beam.cum_logprob, reverse=True)
        width = self._params.beam_width
        self._ended += [beam for beam in candidates if beam.finish_reason]
        self.running = [beam for beam in candidates if not beam.finish_reason][:width]
        if self._is_settled():
            self.running = []

    def best(self, tokenizer: Any) -> list[BeamSearchSequence]:
        """Return the best `beam_width` beams, with their texts."""
        found = sorted([*self._ended, *self.running], key=self._score, reverse=True)
        best = found[: self._params.beam_width]
        for beam in best:
            tokens = beam.tokens[len(self.prompt_ids) :]
            if tokens and tokens[-1] in self._ends:
                tokens = tokens[:-1]
            beam.text = tokenizer.decode(tokens, skip_special_tokens=True)
        return best

    def _longer(
        self, beam: BeamSearchSequence, token: int, likely: Mapping[int, Any]
    ) -> BeamSearchSequence:
        ends = token in self._ends
        shows = not ends or self._params.include_stop_str_in_output
        return BeamSearchSequence(
            beam.orig_prompt,
            [*beam.tokens, token] if shows else beam.tokens,
            [*beam.logprobs, dict(likely)],
            beam.lora_request,
            beam.cum_logprob + likely[token].logprob,
            finish_reason="stop" if ends else None,
            stop_reason=token if ends else None,
        )

    def _score(self, beam: BeamSearchSequence) -> float:
        """Return vLLM's score: log-probability over length, the end token not counted."""
        length = len(beam.tokens) - (beam.tokens[-1] in self._ends)
        return beam.cum_logprob / length**self._params.length_penalty

    def _is_settled(self) -> bool:
        """Return whether enough ended beams are better than the best running one."""
        width = self._params.beam_width
        scores = sorted(map(self._score, self._ended), reverse=True)
        if len(scores) < width or not self.running:
            return False
        return scores[width - 1] >= self._score(self.running[0])


def _step(params: BeamSearchParams) -> SamplingParams:
    """Return parameters for one token, with the twice `beam_width` most likely ones listed."""
    return SamplingParams(
        logprobs=2 * params.beam_width, max_tokens=1, temperature=params.temperature
    )


async def search_online(
    handler: Any,
    prompt: Any,
    request_id: str,
    params: BeamSearchParams,
    lora_request: Any = None,
    trace_headers: Mapping[str, str] | None = None,
) -> AsyncGenerator[RequestOutput, None]:
    """Replace vLLM's `BeamSearchOnlineMixin.beam_search`: yields one output, with all beams.

    Raises:
        NotImplementedError: The prompt is embeddings.
    """
    _refuse_embeddings(prompt)
    tokenizer = handler.renderer.get_tokenizer()
    ends = () if params.ignore_eos else end_tokens(handler.model_config, tokenizer)
    beams = Beams(prompt, params, ends, lora_request)
    for _ in range(params.max_tokens):
        name = f"{request_id}-{random_uuid()}"
        steps = [
            handler.engine_client.generate(
                beam.get_prompt(),
                _step(params),
                f"{name}-beam-{number}",
                lora_request=beam.lora_request,
                trace_headers=trace_headers,
            )
            for number, beam in enumerate(beams.running)
        ]
        results = await asyncio.gather(*map(collect_from_async_generator, steps))
        outputs = [result[0].outputs[0] for result in results]
        if any(output.finish_reason == "error" for output in outputs):
            failed = CompletionOutput(0, "", [], None, None, finish_reason="error")
            yield _output(request_id, beams, [failed])
            return
        beams.advance(outputs)
        if not beams.running:
            break
    yield _output(request_id, beams, _completions(beams, tokenizer))


def search_offline(
    llm: Any,
    prompts: Sequence[Any],
    params: BeamSearchParams,
    lora_request: Any = None,
    use_tqdm: bool = False,
    concurrency_limit: int | None = None,
) -> list[BeamSearchOutput]:
    """Replace vLLM's `LLM.beam_search`: `concurrency_limit` prompts at a time, no progress bar.

    Raises:
        NotImplementedError: A prompt is embeddings.
    """
    tokenizer = llm.renderer.get_tokenizer()
    ends = () if params.ignore_eos else end_tokens(llm.model_config, tokenizer)
    inputs = llm._preprocess_cmpl(prompts)
    for prompt in inputs:
        _refuse_embeddings(prompt)
    adapters = llm._lora_request_to_seq(lora_request, len(inputs))
    searches = [
        Beams(prompt, params, ends, lora) for prompt, lora in zip(inputs, adapters, strict=True)
    ]
    at_once = concurrency_limit or len(searches) or 1
    for first in range(0, len(searches), at_once):
        _search_together(llm, searches[first : first + at_once], params)
    return [BeamSearchOutput(sequences=beams.best(tokenizer)) for beams in searches]


def _search_together(llm: Any, searches: list[Beams], params: BeamSearchParams) -> None:
    for _ in range(params.max_tokens):
        running = [beam for beams in searches for beam in beams.running]
        if not running:
            return
        results = llm._render_and_run_requests(
            prompts=(beam.get_prompt() for beam in running),
            params=llm._params_to_seq(_step(params), len(running)),
            output_type=RequestOutput,
            lora_requests=[beam.lora_request for beam in running],
            use_tqdm=False,
        )
        outputs = iter([result.outputs[0] for result in results])
        for beams in searches:
            beams.advance([next(outputs) for _ in beams.running])


def _refuse_embeddings(prompt: Any) -> None:
    if prompt["type"] == "embeds":
        raise NotImplementedError("Beam search takes no prompt of embeddings; send text or ids.")


def _completions(beams: Beams, tokenizer: Any) -> list[CompletionOutput]:
    return [
        CompletionOutput(
            index=number,
            text=beam.text or "",
            token_ids=beam.tokens[len(beams.prompt_ids) :],
            cumulative_logprob=beam.cum_logprob,
            logprobs=beam.logprobs,
            finish_reason=beam.finish_reason or "length",
            stop_reason=beam.stop_reason,
        )
        for number, beam in enumerate(beams.best(tokenizer))
    ]


def _output(request_id: str, beams: Beams, outputs: list[CompletionOutput]) -> RequestOutput:
    return RequestOutput(
        request_id=request_id,
        prompt=beams.prompt_text,
        prompt_token_ids=beams.prompt_ids,
        prompt_logprobs=None,
        outputs=outputs,
        finished=True,
    )
