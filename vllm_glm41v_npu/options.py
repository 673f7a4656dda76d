# SPDX-License-Identifier: Apache-2.0
"""This package's own engine options, in vLLM's `--additional-config`. Imports no torch or vLLM."""

from __future__ import annotations

from typing import Any

MICRO_BATCH = "micro_batch"
FEWEST_TOKENS = 2048
"""Of a step that is cut in two, if no number is given; MindIE's."""


class OptionError(ValueError):
    """An option that cannot be used; the message says what was found and what to do."""


def micro_batch_tokens(additional_config: Any, lora: bool = False) -> int | None:
    """The fewest tokens of a step that micro batching cuts in two, None where it is off.

    Args:
        additional_config: vLLM's; `micro_batch` in it is true, false, or that number.
        lora: Whether adapters are served.

    Raises:
        OptionError: It is something else, or is on beside adapters.
    """
    options = additional_config if isinstance(additional_config, dict) else {}
    found = options.get(MICRO_BATCH, False)
    if found is False:
        return None
    if found is True:
        found = FEWEST_TOKENS
    if not isinstance(found, int) or found < 2:
        raise OptionError(
            f"{MICRO_BATCH} in --additional-config is {found!r}; expected true, false, or the "
            "fewest tokens of a step that is cut in two, 2 or more."
        )
    if lora:
        raise OptionError(
            f"{MICRO_BATCH} in --additional-config is on beside --enable-lora: vLLM's LoRA layers "
            "look up the adapter of each token in the whole step. Leave out one of the two."
        )
    return found
