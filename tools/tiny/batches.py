# SPDX-License-Identifier: Apache-2.0
"""Training batches for the tiny model: a rolling pool of pictures, cheaply varied on every use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvf
from transformers import PreTrainedTokenizerFast

from tools.tiny.conversation import SYSTEM_PROMPTS, random_exchange
from tools.tiny.ink import handwriting_indices
from tools.tiny.number_pictures import NumberPicture, draw_handwritten, draw_written, seen_size

PATCH, MERGE = 14, 2
NO_DIGIT = 10  # class of a patch that is on no digit
IGNORED = -100
SYSTEM_SHARE = 0.08  # of the batches
# Share of handwriting among the pictures of 1, 2, 3 and 4 digits.
HANDWRITTEN_SHARE = (0.6, 0.1, 0.06, 0.05)


@dataclass(frozen=True)
class Prepared:
    """A picture as the model sees it: uint8 [3, H, W], and the digit of every patch."""

    pixels: torch.Tensor
    answer: str
    # int64 [patches, 2] in merge order, 0..9 or NO_DIGIT: which digit's centre is in the patch,
    # and which digit the patch's own centre is on
    patch_digits: np.ndarray


@dataclass(frozen=True)
class Batch:
    # pictures of one size each, float32 [n, 3, H, W] in 0..255, or a video's pairs of frames
    # [n, 2, 3, H, W]
    groups: list[torch.Tensor]
    patch_digits: torch.Tensor  # int64 [patches of all groups, 2]
    input_ids: torch.Tensor  # int64 [sequences, tokens], padded on the right
    positions: torch.Tensor  # int64 [3, sequences, tokens]
    labels: torch.Tensor  # int64 [sequences, tokens], IGNORED outside the answers
    features: torch.Tensor  # int64: which merged vision token each <|image|> token is
    numbers: torch.Tensor  # int64 [pictures or pairs, 4]: digits, then NO_DIGIT; in text order


def merge_order(grid: np.ndarray) -> np.ndarray:
    """[h, w, n] patches in the order the model takes them: the four of a merged token together."""
    h, w, n = grid.shape
    # [h/2, 2, w/2, 2, n] -> [h/2, w/2, 2, 2, n]
    cells = grid.reshape(h // MERGE, MERGE, w // MERGE, MERGE, n).transpose(0, 2, 1, 3, 4)
    return cells.reshape(-1, n)


def prepare(picture: NumberPicture, seen: tuple[int, int] | None = None) -> Prepared:
    """Resize exactly as Glm4vImageProcessor (torchvision) does, in uint8.

    `seen` is the width and height to resize to: a picture's own, unless it is a video's frame.
    """
    width, height = seen or seen_size(*picture.image.size)
    pixels = tvf.resize(
        tvf.pil_to_tensor(picture.image), [height, width],
        interpolation=tvf.InterpolationMode.BICUBIC, antialias=True,
    )  # fmt: skip
    h, w = height // PATCH, width // PATCH
    grid = np.full((h, w, 2), NO_DIGIT)
    patch_y, patch_x = (np.mgrid[0:h, 0:w] + 0.5) / np.array([h, w])[:, None, None]
    for digit, x, y in picture.centres:
        inside = abs(patch_x - x) < picture.reach[0], abs(patch_y - y) < picture.reach[1]
        grid[inside[0] & inside[1], 1] = digit
        grid[min(max(int(y * h), 0), h - 1), min(max(int(x * w), 0), w - 1), 0] = digit
    return Prepared(pixels, picture.answer, merge_order(grid))


class PicturePool:
    """Prepared pictures of the train split; slot i always holds the same kind and length."""

    def __init__(self, size: int, seed: int):
        self.rng = np.random.default_rng(seed)
        self.indices = handwriting_indices("train")
        self.lengths = np.arange(size) % 4 + 1
        share = np.array(HANDWRITTEN_SHARE)[self.lengths - 1]
        self.by_hand = (np.arange(size) // 4 + 0.5) / (size // 4) < share
        self.slots: list[Prepared] = [self.draw(i) for i in range(size)]
        self.by_length = [np.flatnonzero(self.lengths == n) for n in range(1, 5)]
        self.next = 0

    def draw(self, slot: int) -> Prepared:
        length = int(self.lengths[slot])
        if self.by_hand[slot]:
            picked = self.rng.choice(self.indices, length)
            return prepare(draw_handwritten(self.rng, "train", [int(i) for i in picked]))
        return prepare(draw_written(self.rng, "train", length, length))

    def refresh(self, count: int) -> None:
        order = (self.next + np.arange(count)) * 7919 % len(self.slots)
        for slot in order:  # 7919 is prime to the size: visits every slot, all kinds mixed
            self.slots[slot] = self.draw(int(slot))
        self.next += count

    def sample(
        self, rng: np.random.Generator, count: int, weights: Sequence[float]
    ) -> list[Prepared]:
        lengths = rng.choice(len(weights), count, p=np.array(weights) / sum(weights))
        return [self.slots[rng.choice(self.by_length[n])] for n in lengths]


def vary(rng: np.random.Generator, pixels: torch.Tensor) -> torch.Tensor:
    """Other colours and fresh noise: uint8 [n, 3, H, W] to float32 in 0..255."""
    n = len(pixels)
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(3), (n, 1)), axis=1))
    mixed = pixels.float()[torch.arange(n)[:, None], order]
    gain, shift, noise = (
        torch.from_numpy(rng.uniform(low, high, (n, 1, 1, 1)).astype(np.float32))
        for low, high in ((0.8, 1.05), (-127.5, 127.5), (0, 6))
    )
    sign = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), (n, 1, 1, 1)))
    grain = torch.from_numpy(rng.standard_normal(pixels.shape, np.float32))
    varied = (mixed - 127.5) * (sign * gain) + (127.5 + shift * (1 - gain).abs()) + grain * noise
    return varied.clamp_(0, 255)


def token_positions(ids: np.ndarray, image_id: int, grids: list[tuple[int, int]]) -> np.ndarray:
    """M-RoPE positions int64 [3, tokens]; `grids` are the merged grids of the pictures."""
    positions = np.zeros((3, len(ids)), np.int64)
    index = current = 0
    remaining = iter(grids)
    while index < len(ids):
        if ids[index] != image_id:
            positions[:, index] = current
            index, current = index + 1, current + 1
            continue
        h, w = next(remaining)
        span = slice(index, index + h * w)
        positions[0, span] = current
        positions[1, span] = current + np.repeat(np.arange(h), w)
        positions[2, span] = current + np.tile(np.arange(w), h)
        index, current = index + h * w, current + max(h, w)
    return positions


def group_by_size(pictures: list[Prepared]) -> tuple[list[list[int]], np.ndarray]:
    """Indices of the pictures of each size, and where each picture's merged tokens start."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, picture in enumerate(pictures):
        sizes.setdefault(tuple(picture.pixels.shape), []).append(i)
    start, total = np.zeros(len(pictures), np.int64), 0
    for members in sizes.values():
        for i in members:
            start[i] = total
            total += len(pictures[i].patch_digits) // MERGE**2
    return list(sizes.values()), start


def number_digits(pictures: list[Prepared]) -> np.ndarray:
    """The digits of each picture's number: int64 [pictures, 4], filled up with NO_DIGIT."""
    rows = [[int(d) for d in p.answer] + [NO_DIGIT] * (4 - len(p.answer)) for p in pictures]
    return np.array(rows, np.int64).reshape(-1, 4)


def build_batch(
    rng: np.random.Generator,
    tokenizer: PreTrainedTokenizerFast | None,
    requests: list[list[Prepared]],
    varied: bool = True,
) -> Batch:
    """One sequence a request; a request without pictures becomes small talk.

    Without a tokenizer the batch has pictures only, for the vision tower alone.
    """
    # The same for the whole batch: rows of like length waste little padding.
    asks = tokenizer is not None and rng.random() < SYSTEM_SHARE
    system = SYSTEM_PROMPTS[rng.integers(2)] if asks else ""
    exchanges = [random_exchange(rng, [p.answer for p in r], system) for r in requests]
    return assemble(tokenizer, requests, exchanges, (lambda p: vary(rng, p)) if varied else None)


def assemble(
    tokenizer: PreTrainedTokenizerFast | None,
    requests: list[list[Prepared]],
    exchanges: Sequence[tuple[str, ...]],
    change: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Batch:
    """The batch of these prompts and replies; `change` makes of a group's pixels what is seen.

    An exchange is (prompt, reply) or, with further turns, (prompt, reply, prompt, reply, ...);
    <|user|>, which ends a reply, also begins the next prompt.
    """
    pictures = [p for request in requests for p in request]
    groups, start = group_by_size(pictures)
    stacks = [torch.stack([pictures[i].pixels for i in g]) for g in groups]
    digits = [pictures[i].patch_digits for g in groups for i in g] or [np.zeros((0, 2), np.int64)]
    seen = [change(stack) if change else stack.float() for stack in stacks]
    text = (
        write_text(tokenizer, requests, exchanges, start)
        if tokenizer
        else [np.zeros(0, np.int64)] * 4
    )
    arrays = [np.concatenate(digits), *text, number_digits(pictures)]
    return Batch(seen, *(torch.from_numpy(array) for array in arrays))


def write_text(
    tokenizer: PreTrainedTokenizerFast,
    requests: list[list[Prepared]],
    exchanges: Sequence[tuple[str, ...]],
    start: np.ndarray,
) -> list[np.ndarray]:
    """input_ids, positions, labels and features of a Batch."""
    image_id = tokenizer.convert_tokens_to_ids("<|image|>")
    user_id = tokenizer.convert_tokens_to_ids("<|user|>")
    rows, features, seen = [], [np.zeros(0, np.int64)], 0
    for request, texts in zip(requests, exchanges, strict=True):
        first = texts[0]
        grids = []
        for picture in request:
            h, w = (s // (PATCH * MERGE) for s in picture.pixels.shape[1:])
            grids.append((h, w))
            first = first.replace("<|image|>", "<image>" * (h * w), 1)
            features.append(start[seen] + np.arange(h * w))
            seen += 1
        tokens, answers = [], []
        for asked, answer in zip([first, *texts[2::2]], texts[1::2], strict=True):
            before = tokenizer.encode(asked.replace("<image>", "<|image|>"))
            after = tokenizer.encode(answer) + [user_id]
            tokens += before + after
            answers += [IGNORED] * len(before) + after
        ids = np.array(tokens)
        rows.append((ids, token_positions(ids, image_id, grids), np.array(answers)))
    longest = max(len(ids) for ids, _, _ in rows)

    def padded(i: int, fill: int) -> np.ndarray:
        return np.stack(
            [
                np.pad(
                    r[i],
                    [(0, 0)] * (r[i].ndim - 1) + [(0, longest - len(r[0]))],
                    constant_values=fill,
                )
                for r in rows
            ]
        )

    # positions: [sequences, 3, tokens] -> [3, sequences, tokens]
    positions = padded(1, 0).transpose(1, 0, 2)
    return [
        padded(0, tokenizer.pad_token_id),
        positions,
        padded(2, IGNORED),
        np.concatenate(features),
    ]
