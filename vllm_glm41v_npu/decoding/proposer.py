# SPDX-License-Identifier: Apache-2.0
"""The proposer of `--parallel-decoding memory`, with the methods that vLLM's `custom_class` needs.

--speculative-config '{"method": "custom_class", "num_speculative_tokens": 15,
                       "model": "vllm_glm41v_npu.decoding.proposer.MemoryProposer"}'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_glm41v_npu.decoding.settings import MOST_TOKENS
from vllm_glm41v_npu.decoding.trie import Trie, prepare

if TYPE_CHECKING:
    from vllm.config import VllmConfig

MEDIA = ("image_token_id", "video_token_id")
"""Keys of the model's config: the tokens that stand for pictures and videos in a prompt."""

TAIL = 16
"""Number of last tokens by which, together with its length, a text is recognized."""

FEW = 4
"""Largest number of requests in a step for which a wrong draft costs little."""


class MemoryProposer:
    """Drafts tokens from the prompts and answers of all requests, the same request included.

    Raises:
        ValueError: More tokens are asked for than Ascend's attention verifies in a step.
    """

    dynamic = True
    """Stop where the draft is likely to be wrong."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        speculative = vllm_config.speculative_config
        assert speculative is not None
        self.limit = speculative.num_speculative_tokens
        if self.limit > MOST_TOKENS:
            raise ValueError(
                f"num_speculative_tokens is {self.limit}; expected 1 to {MOST_TOKENS}: Ascend's "
                "attention takes 16 tokens of a request in a step, and one of them is sampled."
            )
        model = vllm_config.model_config
        self.max_model_len = model.max_model_len
        ids = (getattr(model.hf_config, name, None) for name in MEDIA)
        self.trie = Trie(ignored=[token for token in ids if token is not None])
        self._known: dict[tuple[int, bytes], None] = {}
        self._most_known = 4 * vllm_config.scheduler_config.max_num_seqs
        prepare()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: there is no draft model."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: np.ndarray,
        token_ids_cpu: np.ndarray,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Return draft tokens for each request of a step, none while its prompt is being read.

        Args:
            sampled_token_ids: Tokens sampled for each request in this step.
            num_tokens_no_spec: int32 [requests or more], length of each text with these tokens.
            token_ids_cpu: int32 [requests or more, max_model_len], the texts.
            slot_mappings: Not used.
        """
        texts = [
            row[:length] if sampled else None
            for sampled, row, length in zip(
                sampled_token_ids, token_ids_cpu, num_tokens_no_spec, strict=False
            )
        ]
        for text, sampled in zip(texts, sampled_token_ids, strict=True):
            if text is not None:
                self._learn(text, len(sampled))
        running = sum(text is not None for text in texts)
        least = (0.25 if running <= FEW else 0.5) if self.dynamic else 0.0
        return [[] if text is None else self._draft(text, least) for text in texts]

    def _learn(self, text: np.ndarray, sampled: int) -> None:
        """Remember the sampled tokens, and before them the prompt of a request that is new.

        vLLM does not say which request a row belongs to, and moves rows.
        """
        before = text[: len(text) - sampled]
        if _key(before) not in self._known:
            self.trie.learn(before, len(before), written=False)
        self.trie.learn(text, sampled, written=True)
        self._known[_key(text)] = None
        if len(self._known) > self._most_known:
            del self._known[next(iter(self._known))]

    def _draft(self, text: np.ndarray, least: float) -> list[int]:
        room = self.max_model_len - len(text) - 1  # one is sampled after the last draft token
        return self.trie.draft(text, max(min(self.limit, room), 0), least)


class FixedMemoryProposer(MemoryProposer):
    """MemoryProposer that drafts all the tokens asked for, as long as it knows how to go on."""

    dynamic = False


def _key(text: np.ndarray) -> tuple[int, bytes]:
    return len(text), text[-TAIL:].tobytes()
