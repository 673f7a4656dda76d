# SPDX-License-Identifier: Apache-2.0
"""Training batches of clips: pairs of frames made of a rolling pool of single scenes.

The vision tower sees each pair alone, so a clip is any scenes of one size, each shown for a pair
or two, at made-up seconds. Files are never encoded here; JPEG stands in for H.264's losses.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from tools.tiny.batches import SYSTEM_SHARE, Batch, Prepared, assemble, prepare, vary
from tools.tiny.conversation import SYSTEM_PROMPTS, prompt
from tools.tiny.number_clips import (
    LONGEST,
    MOST_DIGITS,
    SEEN_SIZES,
    SHAKE,
    draw_scene,
    native_size,
    readable_ink,
)
from tools.tiny.number_pictures import background, random_number
from tools.tiny.video_talk import KINDS, ask, next_prompt, no_video, video_prompt, video_reply

TURNS = 7  # questions about a clip, at most
TEXT_ONLY_SHARE = 0.05  # of the batches have one question about a clip that is not there
REGULAR_SHARE = 0.6  # of the clips have the seconds of a processor's sampling
JPEG_SHARE, JPEG_QUALITY = 0.5, (35, 95)
RATES = (1, 1, 1, 2, 2, 3)  # seconds from one pair to the next


class ScenePool:
    """Prepared scenes; slot i always holds the same size and number of digits."""

    def __init__(self, size: int, seed: int, split: str = "train"):
        self.rng, self.split = np.random.default_rng(seed), split
        self.slots = [self.draw(i) for i in range(size)]
        kinds = np.arange(size) % (len(SEEN_SIZES) * MOST_DIGITS)
        self.by_kind = [np.flatnonzero(kinds == k) for k in range(kinds.max() + 1)]
        self.next = 0

    def draw(self, slot: int) -> Prepared:
        length, which = slot % MOST_DIGITS + 1, slot // MOST_DIGITS % len(SEEN_SIZES)
        seen = SEEN_SIZES[which]
        size = native_size(self.rng, seen)
        number = random_number(self.rng, length, length)
        ink = readable_ink(self.rng, self.split, number, size, seen)
        scenery = background(self.rng, self.split, size, 0.15)
        return prepare(draw_scene(self.rng, ink, size, seen, scenery), seen)

    def refresh(self, count: int) -> None:
        for slot in (self.next + np.arange(count)) * 7919 % len(self.slots):
            self.slots[slot] = self.draw(int(slot))
        self.next += count

    def sample(
        self, rng: np.random.Generator, which: int, count: int, two_digits: float
    ) -> list[Prepared]:
        """`count` scenes of SEEN_SIZES[which] with different numbers."""
        found: dict[str, Prepared] = {}
        while len(found) < count:
            kind = which * MOST_DIGITS + int(rng.random() < two_digits)
            scene = self.slots[rng.choice(self.by_kind[kind])]
            found[scene.answer] = scene
        return list(found.values())


def random_seconds(rng: np.random.Generator, pairs: int) -> list[int]:
    """The second of each pair: evenly spaced as a processor samples, or any that only grow."""
    if rng.random() < REGULAR_SHARE:
        rate = max(1, min(int(rng.choice(RATES)), (LONGEST - 1) // max(1, pairs - 1)))
        return [i * rate for i in range(pairs)]
    later = rng.choice(np.arange(1, max(LONGEST, pairs)), pairs - 1, replace=False)
    return [0, *(int(second) for second in np.sort(later))]


def random_clip(
    rng: np.random.Generator, pool: ScenePool, most: int, two_digits: float
) -> tuple[list[Prepared], list[int]]:
    """A scene a pair, and the second of each pair."""
    which = int(rng.integers(len(SEEN_SIZES)))
    scenes = pool.sample(rng, which, int(rng.integers(2, most + 1)), two_digits)
    pairs = [s for s in scenes for _ in range(1 + int(rng.random() < 0.2))][:LONGEST]
    return pairs, random_seconds(rng, len(pairs))


def random_video_exchange(
    rng: np.random.Generator,
    pairs: list[Prepared],
    seconds: list[int],
    system: str = "",
    turns: int = TURNS,
) -> tuple[str, ...]:
    """Prompts and replies about a clip, in turns: looking is dear, being asked is cheap."""
    if not pairs:  # none was sent
        question = ask(rng, KINDS[rng.integers(len(KINDS))], int(rng.integers(LONGEST)))
        return prompt(question, 0, system), no_video(question)
    subjects = [("first", 0), ("last", -1), *(("at", j) for j in range(len(pairs)))]
    texts: list[str] = []
    for i in rng.permutation(len(subjects))[:turns]:
        kind, j = subjects[i]
        question = ask(rng, kind, seconds[j])
        asked = next_prompt(question) if texts else video_prompt(question, seconds, system)
        texts += [asked, video_reply(question, kind, seconds[j], pairs[j].answer)]
    return tuple(texts)


def shift(rng: np.random.Generator, pixels: torch.Tensor) -> torch.Tensor:
    """Every picture of [n, 3, H, W] moved by up to SHAKE pixels, edges repeated."""
    _, _, height, width = pixels.shape
    padded = torch.nn.functional.pad(pixels, [SHAKE] * 4, mode="replicate")
    corners = rng.integers(0, 2 * SHAKE + 1, (len(pixels), 2))
    return torch.stack(
        [p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)]
    )


def lossy(pixels: torch.Tensor, quality: int) -> torch.Tensor:
    """A picture [3, H, W] in 0..255 through JPEG with halved colour."""
    file = io.BytesIO()
    array = pixels.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array).save(file, "JPEG", quality=quality, subsampling=2)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()


def pair_up(rng: np.random.Generator, pixels: torch.Tensor) -> torch.Tensor:
    """Scenes, uint8 [n, 3, H, W], to pairs of unlike frames, float32 [n, 2, 3, H, W]."""
    scenes = vary(rng, pixels)
    noise = torch.from_numpy(rng.uniform(0, 6, (len(scenes), 1, 1, 1)).astype(np.float32))
    frames = []
    for _ in range(2):
        grain = torch.from_numpy(rng.standard_normal(scenes.shape, np.float32))
        frames.append((shift(rng, scenes) + grain * noise).clamp_(0, 255))
    pairs = torch.stack(frames, 1)
    for pair in pairs:
        if rng.random() < JPEG_SHARE:
            quality = int(rng.integers(*JPEG_QUALITY))
            pair[0], pair[1] = lossy(pair[0], quality), lossy(pair[1], quality)
    return pairs


def build_video_batch(
    rng: np.random.Generator,
    tokenizer: PreTrainedTokenizerFast,
    pool: ScenePool,
    pairs: int,
    most: int,
    two_digits: float,
    turns: int = TURNS,
) -> Batch:
    """Clips of `pairs` pairs together, or a few more; of `most` numbers at most."""
    asks = rng.random() < SYSTEM_SHARE
    system = SYSTEM_PROMPTS[rng.integers(2)] if asks else ""
    clips: list[tuple[list[Prepared], list[int]]] = []
    while sum(len(scenes) for scenes, _ in clips) < pairs:
        clips.append(random_clip(rng, pool, most, two_digits))
    if rng.random() < TEXT_ONLY_SHARE:
        clips.append(([], []))
    exchanges = [random_video_exchange(rng, *clip, system, turns) for clip in clips]
    return assemble(tokenizer, [c for c, _ in clips], exchanges, lambda p: pair_up(rng, p))
