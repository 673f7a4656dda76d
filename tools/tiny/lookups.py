# SPDX-License-Identifier: Apache-2.0
"""Which pair of frames each answer about a clip comes from, and a loss for not attending to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from tools.tiny.batches import NO_DIGIT, Batch


@dataclass(frozen=True)
class Lookups:
    rows: torch.Tensor  # int64 [lookups]: the sequence
    columns: torch.Tensor  # int64 [lookups]: the token after which a digit of a number is due
    sources: torch.Tensor  # float32 [lookups, tokens]: 1 at the two tokens after the right pairs


def source_tokens(ends: list[int], numbers: list[list[int]], wanted: list[int]) -> list[int]:
    """The tokens after the pairs that show the wanted digits; `ends` are <|end_of_image|>s."""
    padded = wanted + [NO_DIGIT] * (4 - len(wanted))
    shown = [end for end, number in zip(ends, numbers, strict=True) if number == padded]
    return [token for end in shown for token in (end, end + 1)]


def find_lookups(tokenizer: PreTrainedTokenizerFast, batch: Batch) -> Lookups:
    """Where a batch of clips names the digits of a number: in each reply's thought.

    The thought ends in " 4 7.</think><answer>47</answer>", a token each but for the blanks.
    """
    of = tokenizer.convert_tokens_to_ids
    end_id, answer_id, close_id = of("<|end_of_image|>"), of("<answer>"), of("</answer>")
    digit_ids = [of(str(digit)) for digit in range(10)]
    rows, columns, sources, pair = [], [], [], 0
    for row, ids in enumerate(batch.input_ids.tolist()):
        ends = [i for i, token in enumerate(ids) if token == end_id]
        numbers = batch.numbers[pair : pair + len(ends)].tolist()
        pair += len(ends)
        for start in (i for i, token in enumerate(ids) if token == answer_id and ends):
            wanted = [digit_ids.index(t) for t in ids[start + 1 : ids.index(close_id, start)]]
            source = torch.zeros(len(ids))
            source[source_tokens(ends, numbers, wanted)] = 1
            for column in range(start - 2 - 2 * len(wanted), start - 2, 2):
                rows.append(row)
                columns.append(column)
                sources.append(source)
    return Lookups(torch.tensor(rows), torch.tensor(columns), torch.stack(sources))


def lookup_loss(attention: torch.Tensor, lookups: Lookups) -> torch.Tensor:
    """At least one head of the layer [sequences, heads, tokens, tokens] should look there."""
    seen = attention[lookups.rows, :, lookups.columns]  # [lookups, heads, tokens]
    share = (seen * lookups.sources.unsqueeze(1)).sum(-1)
    return -(share.amax(1) + 1e-6).log().mean()
