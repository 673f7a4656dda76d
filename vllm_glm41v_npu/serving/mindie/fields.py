# SPDX-License-Identifier: Apache-2.0
"""The fields of MindIE's `POST /generate`: types, ranges, vLLM's names, and MindIE's refusals.

Source: MindIE-LLM 8b4871ad, src/server/endpoint (utils/infer_param.cpp, parse_protocol.cpp and the
two single_req_{vllm,tgi_text}_infer_interface.cpp). Fields are checked in MindIE's order, as only
the first wrong one is named.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
FLOAT_MAX = 3.4028234663852886e38
STOP_LENGTH, STOP_COUNT, STOP_TOTAL = 1024, 1024, 32 * 1024
NAME_LENGTH = 256

TYPES: dict[str, Callable[[Any], bool]] = {
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "unsigned": lambda value: TYPES["integer"](value) and value >= 0,
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "object": lambda value: isinstance(value, dict),
}


class Refused(Exception):
    """A request that MindIE refuses: the HTTP status and the sentence it answers with."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Field(NamedTuple):
    """A field of one of MindIE's JSON types (a key of TYPES)."""

    key: str
    type: str
    fits: Callable[[Any], bool] = lambda value: True
    unfit: str = ""
    """MindIE's sentence about a value that does not fit; {} is the value as JSON."""
    name: str | None = None
    """vLLM's name of the field; None where request.py decides what vLLM is asked."""

    def check(self, value: Any) -> None:
        if not TYPES[self.type](value):
            raise Refused(f"{self.key} must be {self.type} type.{_quoted(self.type, value)}")
        if not self.fits(value):
            raise Refused(self.unfit.format(dumps(value)))


def _quoted(kind: str, value: Any) -> str:
    """Return a remark about a string that holds a value of the right type; else an empty text."""
    try:
        inner = json.loads(value) if isinstance(value, str) and len(value) < 32 else None
    except ValueError:
        return ""
    if inner is None or not TYPES[kind](inner):
        return ""
    return f" {dumps(value)} is a string; leave out the quotes."


class Custom(NamedTuple):
    """A field whose types MindIE checks with sentences of its own; `name` is as in `Field`."""

    key: str
    check: Callable[[Any], None]
    name: str | None = None


def dumps(value: Any) -> str:
    """Return JSON as MindIE writes it: no spaces, and characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def take(body: dict[str, Any], fields: Iterable[Field | Custom]) -> dict[str, Any]:
    """Return the fields of a body that are there and not null, checked.

    Raises Refused about the first wrong one.
    """
    found = {}
    for field in fields:
        value = body.get(field.key)
        if value is not None:
            field.check(value)
            found[field.key] = value
    return found


def named_by_vllm(found: dict[str, Any], fields: Iterable[Field | Custom]) -> dict[str, Any]:
    """Return those of the fields found that vLLM takes as they are, under vLLM's names."""
    return {field.name: found[field.key] for field in fields if field.name and field.key in found}


def _check_stop(value: Any) -> None:
    if isinstance(value, list):
        _check_stop_list(value)
    elif not isinstance(value, str):
        raise Refused("Input validation error: param stop must be string or list[string]")
    elif not 1 <= utf16_length(value) <= STOP_LENGTH:
        raise Refused(
            f"Input validation error: length of `stop` must be in [1, {STOP_LENGTH}], but got "
            f"{utf16_length(value)}"
        )


def _check_stop_list(items: list[Any], most: float = math.inf) -> None:
    lengths = [utf16_length(item) if isinstance(item, str) else 0 for item in items]
    fit = all(1 <= length <= STOP_LENGTH for length in lengths)
    if not fit or sum(lengths) > STOP_TOTAL or len(items) > most:
        raise Refused(
            "Input validation error: `stop` must be list[string] if list, and item length in [1, "
            f"{STOP_LENGTH}] with total <= {STOP_TOTAL}"
        )


def _check_tgi_stop(value: Any) -> None:
    if isinstance(value, list):
        _check_stop_list(value, STOP_COUNT)
    else:
        _check_stop(value)


def _check_stop_token_ids(value: Any) -> None:
    if not isinstance(value, list):
        raise Refused("Parameter stop_token_ids not array")
    if not all(map(TYPES["integer"], value)):
        raise Refused("Parameter stop_token_ids not list[int]")


def _check_model(value: Any) -> None:
    if not isinstance(value, str):
        raise Refused("Model must be string type.")
    if not 1 <= utf16_length(value) <= NAME_LENGTH:
        raise Refused(
            f"Input validation error: length of `model` must be in [1, {NAME_LENGTH}], but got "
            f"{utf16_length(value)}"
        )


def _check_max_tokens(value: Any) -> None:
    if not TYPES["integer"](value):
        raise Refused("Parameter max_tokens not number_integer")
    if not 0 < value <= INT32_MAX:
        raise Refused(f"Parameter max_tokens must be (0,{INT32_MAX}], got {value}")


def utf16_length(text: str) -> int:
    """Return the characters of a text as MindIE counts them, in UTF-16."""
    return len(text) + sum(character > "\uffff" for character in text)


def within(low: float, high: float) -> Callable[[Any], bool]:
    """Return a test that is True for values in [low, high]."""
    return lambda value: low <= value <= high


def above(low: float, high: float) -> Callable[[Any], bool]:
    """Return a test that is True for values in (low, high]."""
    return lambda value: low < value <= high


_SEED = Field(
    "seed",
    "unsigned",
    within(0, INT64_MAX),
    f"Parameter seed must be in [0, {INT64_MAX}], got {{}}.",
    "seed",
)
_REPETITION = Field(
    "repetition_penalty",
    "float",
    above(0, FLOAT_MAX),
    "Parameter 'repetition_penalty' must be in (0.0, 3.40282e+38], got {}.",
)
_TEMPERATURE = "Parameter temperature must be in (0.0,3.40282e+38], got {}."
_TOP_K = f"Parameter top_k must be in -1 || (0,{INT32_MAX}], got {{}}"
_TOP_P = "Parameter top_p must be in (0.0,1.0], got {}."

VLLM_FIELDS: tuple[Field | Custom, ...] = (
    Field("ignore_eos", "boolean", name="ignore_eos"),
    Custom("stop", _check_stop, "stop"),
    Custom("stop_token_ids", _check_stop_token_ids, "stop_token_ids"),
    Field("include_stop_str_in_output", "boolean", name="include_stop_str_in_output"),
    Field("temperature", "float", within(0, FLOAT_MAX), _TEMPERATURE),
    Field("top_k", "integer", lambda value: value == -1 or 0 < value <= INT32_MAX, _TOP_K),
    Field("top_p", "float", above(0, 1), _TOP_P),
    _SEED,
    _REPETITION,
    Field(
        "frequency_penalty",
        "float",
        within(-2, 2),
        "Parameter frequency_penalty should be in [-2.0, 2.0], got {}.",
        "frequency_penalty",
    ),
    Field(
        "presence_penalty",
        "float",
        within(-2, 2),
        "Parameter presence_penalty not in [-2.0, 2.0], but got {}.",
        "presence_penalty",
    ),
    Field("skip_special_tokens", "boolean", name="skip_special_tokens"),
    Field(
        "best_of",
        "unsigned",
        within(1, 128),
        "Parameter [best_of] should be in [1, 128], got {}.",
    ),
    Field("n", "unsigned", within(1, 8192), "Parameter [n] should be in [1, 8192], got {}. "),
    Custom("model", _check_model, "model"),
    Custom("max_tokens", _check_max_tokens),
    Field("stream", "boolean"),
)

TGI_FIELDS: tuple[Field | Custom, ...] = (
    Custom("stop", _check_tgi_stop, "stop"),
    Field("temperature", "float", above(0, FLOAT_MAX), _TEMPERATURE),
    Field("top_k", "integer", above(0, INT32_MAX), _TOP_K),
    Field("top_p", "float", lambda value: 0 < value < 1, _TOP_P),
    Field(
        "typical_p",
        "float",
        above(0, 1),
        "Parameter typical_p must be in (0.0,1.0], got {}.",
    ),
    Field("do_sample", "boolean"),
    _SEED,
    _REPETITION,
    Field("watermark", "boolean"),
    Field(
        "adapter_id",
        "string",
        lambda value: re.fullmatch(r"[a-zA-Z0-9_./-]{1,256}", value) is not None,
        "The format of adapter_id is invalid.",
        "model",
    ),
    Field(
        "max_new_tokens",
        "integer",
        above(0, INT32_MAX),
        f"Parameter max_new_tokens must be in (0,{INT32_MAX}], got {{}}.",
    ),
    Field("details", "boolean"),
    Field("decoder_input_details", "boolean"),
    Field("return_full_text", "boolean"),
    Field(
        "truncate",
        "integer",
        above(0, INT32_MAX),
        f"truncate must be in (0,{INT32_MAX}], got {{}}.",
        "truncate_prompt_tokens",
    ),
)
