# SPDX-License-Identifier: Apache-2.0
"""A plan as a JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from vllm_glm41v_npu import __version__
from vllm_glm41v_npu.checkpoint.folder import Json
from vllm_glm41v_npu.planning.live import Measured
from vllm_glm41v_npu.planning.load import Load
from vllm_glm41v_npu.planning.roofline import Bound, Memory, Plan


def document(plan: Plan, load: Load, measured: Measured | None = None) -> Json:
    """Return all results of a plan, in bytes, seconds and tokens.

    Args:
        plan: The model and the cards.
        load: The load of the cards.
        measured: The figures of a server under this load.
    """
    vision = plan.vision(load.pictures)
    prefill = plan.prefill(load.prompt_tokens)
    token = plan.decode(load.batch, load.context)
    first_token = vision.seconds + prefill.seconds
    memory = plan.memory(load.context)
    return {
        "version": __version__,
        "card": {"name": plan.card.name, "product": plan.card.product},
        "cards": plan.cards,
        "chips": plan.chips,
        "type": plan.type.name,
        "load": _load(load),
        "memory": _memory(memory, load),
        "floors": {
            "vision": _bound(vision),
            "prefill": _bound(prefill),
            "first_token": {"seconds": first_token},
            "token": _bound(token),
            "tokens_per_second": load.batch / token.seconds,
        },
        "server": _server(measured, first_token, token.seconds) if measured else None,
        "figures": {name: figure._asdict() for name, figure in plan.figures.items()},
        "notes": list(_notes(plan, load, memory, measured)),
    }


def _load(load: Load) -> Json:
    pictures = [picture._asdict() for picture in load.pictures]
    return vars(load) | {"pictures": pictures, "prompt_tokens": load.prompt_tokens}


def _memory(memory: Memory, load: Load) -> Json:
    computed = ("kv_cache", "kv_tokens", "sequences")
    return {
        **asdict(memory),
        **{name: getattr(memory, name) for name in computed},
        "fits": memory.sequences >= load.batch,
    }


def _bound(bound: Bound) -> Json:
    return asdict(bound) | {"seconds": bound.seconds, "limited_by": bound.limited_by}


def _server(measured: Measured, first_token: float, token: float) -> Json:
    shares = {
        "prefill": first_token / measured.prefill,
        "first_token": first_token / measured.first_token,
        "token": token / measured.token if measured.token else None,
    }
    return asdict(measured) | {"share_of_floor": shares}


def _notes(plan: Plan, load: Load, memory: Memory, measured: Measured | None) -> Iterator[str]:
    if guesses := [name for name, figure in plan.figures.items() if figure.guess]:
        yield f"Guessed, so what rests on them is too: {', '.join(guesses)}."
    if plan.type.is_int8 and not plan.quantized_down_proj:
        yield "down_proj is taken to be in 16 bits, as it is unless it was quantized on request."
    if not memory.kv_cache:
        yield "The weights do not fit: take more or larger cards, or a smaller type."
    elif memory.sequences < load.batch:
        yield f"Not all of the batch fit: {memory.sequences} of {load.batch:g} sequences do."
    if measured and measured.cached:
        yield (
            f"{measured.cached:.0%} of the prompts' tokens came from the prefix cache, which the "
            "floor of the first token does not know."
        )
