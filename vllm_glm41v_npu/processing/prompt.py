# SPDX-License-Identifier: Apache-2.0
"""The placeholders of a prompt: which tokens stand for media, before and after expansion.

The chat template writes ``<|begin_of_image|><|image|><|end_of_image|>`` for a picture; expansion
repeats the middle token once for each token the vision tower will put there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True)
class Placeholder:
    """How one kind of media shows in a prompt."""

    modality: str
    token_id: int
    """The token that stands for one item before expansion."""

    name: str
    """What an item is called in messages."""

    @classmethod
    def image(cls, config: PretrainedConfig) -> Placeholder:
        return cls(modality="image", token_id=config.image_token_id, name="picture")

    def expansion(self, num_tokens: int) -> list[int]:
        """What the placeholder of a picture becomes when it has ``num_tokens`` tokens."""
        return [self.token_id] * num_tokens

    def check_count(self, prompt_ids: Sequence[int], num_items: int) -> None:
        """
        Raises:
            ValueError: the unexpanded prompt has not one placeholder for each item.
        """
        found = prompt_ids.count(self.token_id)
        if found != num_items:
            raise ValueError(
                f"The prompt has {found} {self.modality} placeholder(s) (token {self.token_id}), "
                f"but the request carries {num_items} {self.name}(s). Write one placeholder for "
                f"each {self.name}, where it belongs in the prompt; the chat template does so by "
                "itself."
            )
