# SPDX-License-Identifier: Apache-2.0
"""Every rule of both chips' tables refuses a call that breaks it, by its own words.

calls.py has a good call of every operator. Each rule on one argument is broken by changing that
argument; each rule on several, by the changes that calls.py lists for its operator.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from npu_emulator.chips.a2 import ATLAS_A2
from npu_emulator.chips.atlas_310p import ATLAS_310P
from npu_emulator.chips.rules import (
    Operator,
    Refusal,
    Rule,
    Tensor,
    Value,
    check,
    check_results,
    tensors_of,
)
from tests.emulator.calls import CALLS, Call, breaks, device, good_call

TABLES: dict[str, Mapping[str, Operator]] = {"A2": ATLAS_A2, "310P": ATLAS_310P}
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32),
    *(torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn),
]
SCHEMAS = json.loads((Path(__file__).parent / "schemas.json").read_text())
ROWS = [(chip, name) for chip, table in TABLES.items() for name in table]
PRESENT = [(chip, name) for chip, name in ROWS if not TABLES[chip][name].absent]

IMPLIED: dict[tuple[str, str, str], str] = {
    ("310P", "npu::npu_prompt_flash_attention", "num_key_value_heads"): "it has to be 0 there",
    ("310P", "npu::npu_prompt_flash_attention", "atten_mask"): "sparse_mode has to be 0 there",
    ("310P", "npu::npu_add_rms_norm_quant", "scales1"): "each argument has one dtype there",
}
"""Chip, operator and argument of rules that no call can break, as those of its arguments come
first. A rule of one dtype for arguments that may have one alone is found by `one_dtype`."""


COUNTED = {
    "A2": {
        "absent": 4,
        "dtypes of the rest": 394,
        "dtypes in all": 4166,
        "lacks": 0,
        "several arguments": 114,
        "tensors": 183,
        "values": 22,
    },
    "310P": {
        "absent": 14,
        "dtypes of the rest": 391,
        "dtypes in all": 3568,
        "lacks": 381,
        "several arguments": 87,
        "tensors": 140,
        "values": 26,
    },
}
"""How many rules of each kind there are."""


def refusal(chip: str, table: Mapping[str, Operator], name: str, call: Call) -> str:
    """What the chip says against the call; nothing where it takes it."""
    try:
        check(chip, table, name, call)
    except Refusal as error:
        return str(error)
    return ""


def one_dtype(row: Operator, rule: Rule) -> bool:
    """Whether every argument of a rule on equal dtypes may have the same single one."""
    if not rule.says.startswith("of the dtype of "):
        return False
    first, _, others = rule.says.removeprefix("of the dtype of ").partition(", as all of ")
    wanted = [row.arguments.get(name) for name in (first, *others.split(", "))]
    return len({w.dtypes if isinstance(w, Tensor) else None for w in wanted}) == 1 and all(
        isinstance(w, Tensor) and len(w.dtypes) == 1 for w in wanted
    )


def resized(tensor: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)


def faults(rule: Tensor, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, str]]:
    """Kind of rule, a tensor that breaks it and what the chip wants."""
    shape = tuple(tensor.shape)
    if rule.dtypes:
        for dtype in DTYPES:
            if str(dtype).removeprefix("torch.") not in rule.dtypes:
                other = torch.empty(shape, dtype=dtype, device=tensor.device)
                yield "dtypes", other, f"one of {', '.join(rule.dtypes)}"
    low, high = rule.ranks
    for rank in (low - 1, high + 1):
        if rank >= 0:
            last = shape[-1:] or (1,)
            other = resized(tensor, *(1,) * (rank - 1), *last[:rank])
            yield "ranks", other, f"{low}-D to {high}-D"
    if rule.last:
        for size in (rule.last[0] - 1, rule.last[-1] + 1):
            yield "last", resized(tensor, *shape[:-1], size), f"one of {rule.last}"
    if rule.last_multiple_of > 1:
        other = resized(tensor, *shape[:-1], rule.last_multiple_of + 1)
        yield "last_multiple_of", other, f"a multiple of {rule.last_multiple_of}"
    if rule.tail_bytes:
        fewest = rule.tail_bytes // tensor.element_size()
        other = resized(tensor, *shape[:-1], fewest - 1)
        yield "tail_bytes", other, f"at least {rule.tail_bytes} bytes"
    if rule.contiguous:
        other = resized(tensor, *shape[:-1], 2 * shape[-1])[..., ::2]
        yield "contiguous", other, "contiguous"
    if rule.host is not None:
        there = "cpu" if tensor.device.type == "meta" else "meta"
        other = torch.empty(shape or (1,), dtype=tensor.dtype, device=there)
        yield "host", other, "in host memory" if rule.host else "on the device"


def argument_faults(row: Operator, call: Call) -> Iterator[tuple[str, str, Any, str]]:
    """Kind of rule, argument, a value of it that breaks the rule, and what the chip wants."""
    for argument, value in call.items():
        wanted = row.arguments.get(argument)
        if isinstance(wanted, Value):
            words = " or ".join(map(repr, wanted.allowed))
            for other in ("another", -7, device(1)):
                yield "values", argument, other, words
            continue
        for tensor in tensors_of(value)[:1]:
            for kind, other, words in faults(wanted or Tensor(row.dtypes), tensor):
                nested = isinstance(value[0], list) if isinstance(value, list) else False
                put = [[other]] if nested else [other] if isinstance(value, list) else other
                yield kind, argument, put, words


@pytest.mark.parametrize(("chip", "name"), PRESENT)
def test_each_rule_on_one_argument_refuses_what_breaks_it(chip: str, name: str) -> None:
    """Guards dtypes, dimensions, sizes, places and values of every argument of a good call."""
    table = TABLES[chip]
    row, call = table[name], good_call(chip, name, table)
    assert refusal(chip, table, name, call) == ""
    if name in CALLS:  # those from schemas have every argument there is
        assert set(row.arguments) <= set(call)
    for kind, argument, other, words in argument_faults(row, call):
        said = refusal(chip, table, name, call | {argument: other})
        assert said.startswith(f"{chip} refuses {name}: {argument} is "), (kind, said)
        assert said.endswith(f", and has to be {words} ({row.document})"), (kind, said)


@pytest.mark.parametrize(("chip", "name"), PRESENT)
def test_each_rule_on_several_arguments_refuses_what_breaks_it(chip: str, name: str) -> None:
    """Guards every `Rule`: a listed change breaks it, and without it nothing says its words."""
    table = TABLES[chip]
    row, call = table[name], good_call(chip, name, table)
    calls = [call | change for change in breaks(chip, name)]
    for rule in row.rules:
        if one_dtype(row, rule) or (chip, name, rule.argument) in IMPLIED:
            continue
        ending = f", and has to be {rule.says} ({row.document})"
        start = f"{chip} refuses {name}: {rule.argument} is "
        others = tuple(other for other in row.rules if other is not rule)
        without = dict(table) | {name: replace(row, rules=others)}
        said = [refusal(chip, table, name, call) for call in calls]
        own = [
            call
            for call, sentence in zip(calls, said, strict=True)
            if sentence.startswith(start) and sentence.endswith(ending) and not rule.holds(call)
        ]
        assert own, f"nothing in tests/emulator/calls.py breaks: {rule.argument} {rule.says}"
        assert not any(refusal(chip, without, name, call).endswith(ending) for call in own)


@pytest.mark.parametrize(("chip", "name"), sorted(set(ROWS) - set(PRESENT)))
def test_an_operator_that_a_chip_lacks_is_refused(chip: str, name: str) -> None:
    """Guards every row that says so, whatever the call."""
    row = TABLES[chip][name]
    call = (
        good_call("A2", name, ATLAS_A2) if chip == "310P" else good_call("310P", name, ATLAS_310P)
    )
    wanted = f"{chip} has no {name}: {row.absent} ({row.document})"
    assert refusal(chip, TABLES[chip], name, call) == wanted


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_calls_have_the_arguments_of_the_schema(name: str) -> None:
    """Guards the names in calls.py against those of torch_npu, with which the tables are asked."""
    known = {argument.name for argument in torch._C.parse_schema(SCHEMAS[name]).arguments}
    for chip in TABLES:
        assert set(good_call(chip, name, TABLES[chip])) <= known
        assert all(set(change) <= known for change in breaks(chip, name))


def kinds(table: Mapping[str, Operator]) -> Counter[str]:
    """How many rules of each kind a table has."""
    found: Counter[str] = Counter()
    for row in table.values():
        found["absent"] += bool(row.absent)
        found["lacks"] += len(row.lacks)
        found["dtypes of the rest"] += bool(row.dtypes)
        own = (getattr(wanted, "dtypes", ()) for wanted in row.arguments.values())
        found["dtypes in all"] += len(row.dtypes) + sum(map(len, own))
        found["several arguments"] += len(row.rules)
        for wanted in row.arguments.values():
            found["values" if isinstance(wanted, Value) else "tensors"] += 1
    return found


@pytest.mark.parametrize("chip", TABLES)
def test_no_rule_is_lost(chip: str) -> None:
    """Guards rules that are taken out of a table; who adds one, counts again."""
    assert kinds(TABLES[chip]) == COUNTED[chip]


def test_every_listed_change_is_refused_by_a_chip() -> None:
    """Guards changes that break nothing any more."""
    for name in {name for _, name in PRESENT}:
        chips = [chip for chip, other in PRESENT if other == name]
        for number in range(max(len(breaks(chip, name)) for chip in chips)):
            assert any(
                refusal(chip, TABLES[chip], name, good_call(chip, name, TABLES[chip]) | change)
                for chip in chips
                for change in breaks(chip, name)[number : number + 1]
            ), (name, number)


@pytest.mark.parametrize("chip", TABLES)
def test_results_of_a_dtype_that_is_lacking_are_refused(chip: str) -> None:
    """Guards what an operator may not return, in every row that says so."""
    for name, row in TABLES[chip].items():
        for dtype in row.lacks:
            result = device(2, dtype=getattr(torch, dtype))
            with pytest.raises(Refusal, match=f"its result is {dtype}"):
                check_results(chip, TABLES[chip], name, [result])
        check_results(chip, TABLES[chip], name, [device(2, dtype=torch.float16)])
        check_results(chip, TABLES[chip], name, [torch.empty(2, dtype=torch.bfloat16)])
