# SPDX-License-Identifier: Apache-2.0
"""The options of parallel decoding, which several subcommands have."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_glm41v_npu.decoding.settings import Kind

ParallelDecoding = Annotated[
    Kind | None, typer.Option(help="Guess several tokens a step; the answers stay the same.")
]
DecodingLength = Annotated[
    int | None, typer.Option(help="Tokens guessed at most, 1 to 16; 5 of ngram, else 16.")
]
DynamicDecoding = Annotated[
    bool | None, typer.Option(help="Of memory: stop at what is likely wrong; the default.")
]
SpeculativeConfig = Annotated[
    str | None, typer.Option(help="vLLM's own, in JSON, in place of --parallel-decoding.")
]
