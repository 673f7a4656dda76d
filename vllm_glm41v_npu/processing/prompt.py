# SPDX-License-Identifier: Apache-2.0
"""The placeholders of a prompt: tokens that stand for media, before and after expansion.

The chat template writes ``<|begin_of_image|><|image|><|end_of_image|>`` for a picture, and
``<|begin_of_video|><|video|><|end_of_video|>`` for a video; expansion replaces the middle token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

PLACEHOLDER_TEXTS = {
    "image": "<|begin_of_image|><|image|><|end_of_image|>",
    "video": "<|begin_of_video|><|video|><|end_of_video|>",
}
"""The text in a prompt that stands for a picture or a video."""


@dataclass(frozen=True)
class Placeholder:
    """The placeholder of one kind of media in a prompt."""

    modality: str
    token_id: int
    """The token that stands for one item before expansion."""

    name: str
    """Its name in messages."""

    @classmethod
    def image(cls, config: PretrainedConfig) -> Placeholder:
        return cls("image", config.image_token_id, "picture")

    @classmethod
    def video(cls, config: PretrainedConfig) -> Placeholder:
        return cls("video", config.video_token_id, "video")

    def check_count(self, prompt_ids: Sequence[int], num_items: int) -> None:
        """Refuse an unexpanded prompt without exactly one placeholder for each item.

        Raises:
            ValueError: Their numbers differ.
        """
        found = prompt_ids.count(self.token_id)
        if found != num_items:
            raise ValueError(
                f"The prompt has {found} {self.modality} placeholder(s) (token {self.token_id}), "
                f"but the request carries {num_items} {self.name}(s). Write one placeholder for "
                f"each {self.name}, where it belongs in the prompt; the chat template does so by "
                "itself."
            )


@dataclass(frozen=True)
class Expansion:
    """Expanded placeholders: token ids, where ``embed_id`` marks places of vision embeddings.

    The tokens of a video are those of pictures, as in transformers 5.5.4 ``Glm4vProcessor``.
    """

    embed_id: int
    start_id: int
    end_id: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Expansion:
        return cls(config.image_token_id, config.image_start_token_id, config.image_end_token_id)

    def picture(self, num_tokens: int) -> list[int]:
        return [self.embed_id] * num_tokens

    def video(
        self, seconds: Iterable[int], tokens_per_pair: int, encode: Callable[[str], list[int]]
    ) -> list[int]:
        """Return a picture for each temporal pair, and behind it its second, as digits."""
        ids: list[int] = []
        for second in seconds:
            ids += [self.start_id, *self.picture(tokens_per_pair), self.end_id]
            ids += encode(str(second))
        return ids
