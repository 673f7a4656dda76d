# SPDX-License-Identifier: Apache-2.0
"""Beam search over a made-up model: where it ends, and which beams it keeps."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.generate.beam_search import offline, online
from vllm.sampling_params import BeamSearchParams

from vllm_glm41v_npu.decoding.beam_search import Beams, end_tokens

ENDS = (7, 8)
PROMPT = {"type": "token", "prompt_token_ids": [1, 2], "prompt": "?"}


def likely(**tokens: float) -> Any:
    """List what may come next, by probability, as vLLM says it: `t3=0.5` is token 3."""
    entries = {int(name[1:]): SimpleNamespace(logprob=math.log(p)) for name, p in tokens.items()}
    return SimpleNamespace(logprobs=[entries])


class Decoder:
    eos_token_id = 7

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(map(str, tokens))


def beams(width: int = 2, ends: Any = ENDS, **options: Any) -> Beams:
    params = BeamSearchParams(beam_width=width, max_tokens=9, **options)
    return Beams(PROMPT, params, ends)


def found(search: Beams) -> list[tuple[str | None, str | None, Any]]:
    return [(beam.text, beam.finish_reason, beam.stop_reason) for beam in search.best(Decoder())]


def test_each_end_token_ends() -> None:
    """Guards the ends that are not the tokenizer's."""
    search = beams()
    search.advance([likely(t3=0.6, t4=0.4)])
    search.advance([likely(t8=0.9, t3=0.1), likely(t7=0.9, t3=0.1)])
    assert search.running == []  # none that is left could be better
    assert found(search) == [("3", "stop", 8), ("4", "stop", 7)]


def test_an_end_token_makes_no_beam_longer() -> None:
    """Guards vLLM's score: an end token that counted would put the other beam first."""
    search = beams(include_stop_str_in_output=True)
    search.advance([likely(t3=0.6, t4=0.4)])
    search.advance([likely(t7=0.5, t6=0.1), likely(t5=0.625, t6=0.1)])
    assert found(search) == [("4 5", None, None), ("3", "stop", 7)]


def test_ends_may_be_ignored() -> None:
    """Guards ignore_eos."""
    search = beams(ends=())
    search.advance([likely(t8=0.6, t4=0.4)])
    assert [beam.tokens for beam in search.running] == [[1, 2, 8], [1, 2, 4]]
    assert found(search) == [("8", None, None), ("4", None, None)]


def test_a_token_outside_the_likeliest() -> None:
    """Guards beams after a sampled token that vLLM reports beside the likeliest: five, not four."""
    search = beams()
    search.advance([likely(t3=0.5, t4=0.3)])
    more = likely(t5=0.4, t6=0.3, t9=0.1, t10=0.1, t11=0.01)
    search.advance([more, likely(t12=0.9, t13=0.05)])
    assert [beam.tokens for beam in search.running] == [[1, 2, 4, 12], [1, 2, 3, 5]]


def test_a_beam_that_is_full() -> None:
    """Guards the longest prompts: what has no room is not lost."""
    search = beams()
    search.advance([likely(t3=0.5, t4=0.3)])
    search.advance([SimpleNamespace(logprobs=None), likely(t5=0.9)])
    assert {text for text, _, _ in found(search)} == {"3", "4 5"}


@pytest.mark.parametrize("shows", [False, True])
def test_the_end_token_itself(shows: bool) -> None:
    """Guards include_stop_str_in_output: the ids have it, the text never."""
    search = beams(1, include_stop_str_in_output=shows)
    search.advance([likely(t3=0.9)])
    search.advance([likely(t8=0.9)])
    (best,) = search.best(Decoder())
    assert best.tokens == [1, 2, 3] + [8] * shows
    assert best.text == "3"


@pytest.mark.parametrize("listed", [[480, 487], 480, None])
def test_which_tokens_end(listed: Any) -> None:
    """Guards each form of eos_token_id in generation_config.json."""
    settings = {} if listed is None else {"eos_token_id": listed}
    config = SimpleNamespace(try_get_generation_config=lambda: settings)
    expected = {7, *(listed if isinstance(listed, list) else [listed] if listed else [])}
    assert end_tokens(config, Decoder()) == expected


@pytest.mark.parametrize("module", [online, offline])
def test_vllm_knows_one_end(module: Any) -> None:
    """When this fails, vLLM may know the others too, and our patch can go."""
    assert "eos_token_id = tokenizer.eos_token_id" in inspect.getsource(module)
