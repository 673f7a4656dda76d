# SPDX-License-Identifier: Apache-2.0
"""Second stage of `assets/glm41v-tiny`: goes on from its weights with clips among the pictures.

    OMP_NUM_THREADS=1 python -m tools.tiny.train_video --start FIRST-STAGE --out DIR

FIRST-STAGE is what `tools.tiny.train` wrote. A step takes 0.3 to 0.4 s on one AVX2 core, the run
about 45 minutes. Seeded; writes a checkpoint every 250 steps and resumes from it. Needs the
development extras. The README beside the weights tells how they differ from one run of this.

Besides the answers, three helpers teach what an answer needs: which digit each patch is on, that
the tokens after a picture hold its number, and that a reply attends to the time it was asked for.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Glm4vForConditionalGeneration

from tools.tiny import forward
from tools.tiny.batches import NO_DIGIT, Batch, PicturePool, build_batch
from tools.tiny.checkpoint import build_processor, save_companions, train_tokenizer
from tools.tiny.clip_pool import ScenePool, build_video_batch
from tools.tiny.lookups import find_lookups, lookup_loss
from tools.tiny.number_clips import MOST_SEGMENTS
from tools.tiny.train import accuracy, heldout_requests, make_optimizers

SEED = 21
PICTURES_A_STEP = PAIRS_A_STEP = 32
PICTURES, SCENES = 8000, 4800
FRESH_A_STEP = 5  # of each pool
ADAM_RATE, MUON_RATE = 6e-4, 2.4e-3
WARM_UP, DECAY_SHARE = 200, 0.3
# The helpers start at random: for so long they learn without moving the model.
HELPERS_ALONE = 150
# (from this share of the run, share of the steps with clips, with several pictures)
MIX = ((0.0, 0.55, 0.22), (0.85, 0.22, 0.13))
WEIGHTS = (3, 0.5, 0.3, 0.3)  # of the losses: answers, patches, gathered numbers, lookups
LENGTH_WEIGHTS = (0.45, 0.15, 0.17, 0.23)  # of pictures with 1, 2, ... digits
# (from this share of the run, numbers in a clip at most, share of them with two digits)
CURRICULUM = ((0.0, 2, 0.25), (0.06, 3, 0.4), (0.12, 4, 0.5), (0.2, MOST_SEGMENTS, 0.6))
EVALUATE_EVERY, SAVE_EVERY, REPORT_EVERY = 500, 250, 50


def learning_rate(step: int, steps: int) -> float:
    """Factor of the peak rate: warm-up, plateau, linear decay to zero."""
    return min(1.0, (step + 1) / WARM_UP, max(0.0, (steps - step) / (steps * DECAY_SHARE)))


class Helpers(nn.Module):
    """Linear maps that tell digits from hidden states; only training needs them."""

    def __init__(self, hidden: int):
        super().__init__()
        self.patches = nn.Linear(hidden, 4 * 2 * (NO_DIGIT + 1))
        self.gathered = nn.Linear(hidden, 4 * (NO_DIGIT + 1))


class VideoTrainer:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        torch.manual_seed(SEED)
        self.tokenizer = train_tokenizer()
        self.model = Glm4vForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32)
        self.model.train()
        self.helpers = Helpers(self.model.config.text_config.hidden_size)
        linears = [self.helpers.patches, self.helpers.gathered]
        self.optimizers = make_optimizers(self.model, linears, ADAM_RATE, MUON_RATE)
        self.step = 0
        self.checkpoint = args.work / "training.pt"

    def load(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.helpers.load_state_dict(state["helpers"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        print(f"resumed at step {self.step}", flush=True)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "helpers": self.helpers.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
        }
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)

    def draw_pools(self) -> None:
        began = time.time()
        self.pictures = PicturePool(PICTURES, SEED + self.step)
        self.scenes = ScenePool(SCENES, SEED + self.step)
        self.unseen = ScenePool(480, SEED + 1, "heldout")
        self.heldout = heldout_requests()
        print(f"pools drawn in {time.time() - began:.0f} s", flush=True)

    def next_batch(self, rng: np.random.Generator) -> tuple[str, Batch]:
        self.pictures.refresh(FRESH_A_STEP)
        self.scenes.refresh(FRESH_A_STEP)
        kind, share = rng.random(), self.step / self.args.steps
        _, clips, several = next(m for m in reversed(MIX) if share >= m[0])
        if kind < clips:
            _, most, two_digits = next(c for c in reversed(CURRICULUM) if share >= c[0])
            return "video", build_video_batch(
                rng, self.tokenizer, self.scenes, PAIRS_A_STEP, most, two_digits
            )
        pictures = self.pictures.sample(rng, PICTURES_A_STEP, LENGTH_WEIGHTS)
        if kind > clips + several:
            return "one", build_batch(rng, self.tokenizer, [*([p] for p in pictures), []])
        requests = []
        while pictures:
            count = int(rng.integers(2, 4))
            requests.append(pictures[:count])
            pictures = pictures[count:]
        return "several", build_batch(rng, self.tokenizer, requests)

    def losses(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Answers, patches' digits, gathered numbers, lookups; then the share of right tokens."""
        model = self.model
        features = forward.see(model.model.visual, batch.groups)
        last, early, attention = forward.read(model, batch, features)
        logits, target = forward.answer_logits(model, batch, last)
        gathered = forward.gathered(model, batch, early)
        if self.step < HELPERS_ALONE:
            features, gathered = features.detach(), gathered.detach()
        return (
            nn.functional.cross_entropy(logits, target),
            forward.helper_loss(self.helpers.patches(features), batch.patch_digits),
            forward.gathering_loss(self.helpers.gathered(gathered), batch.numbers),
            lookup_loss(attention, find_lookups(self.tokenizer, batch))
            if attention is not None
            else torch.zeros(()),
            (logits.argmax(-1) == target).float().mean(),
        )

    def update(self, batch: Batch) -> list[float]:
        losses = self.losses(batch)
        sum(w * part for w, part in zip(WEIGHTS, losses, strict=False)).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = learning_rate(self.step, self.args.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad()
        return [part.item() for part in losses]

    def evaluate(self) -> str:
        shares = {k: accuracy(self.model, self.tokenizer, v) for k, v in self.heldout.items()}
        rng = np.random.default_rng(SEED + 2)
        right = [
            forward.exact(
                self.model,
                build_video_batch(
                    rng, self.tokenizer, self.unseen, PAIRS_A_STEP, MOST_SEGMENTS, 0.6, turns=1
                ),
            )
            for _ in range(40)
        ]
        shares["video"] = float(torch.cat(right).float().mean())
        return ", ".join(f"{k} {v:.4f}" for k, v in shares.items())

    def report(self, seen: dict[str, list[list[float]]], pace: float) -> str:
        parts = [f"step {self.step} {pace * 1000:.0f} ms"]
        for kind, rows in sorted(seen.items()):
            answers, patches, gathered, lookups, right = np.mean(rows, 0)
            parts.append(
                f"{kind}: {answers:.4f} patches {patches:.3f} gathered {gathered:.3f} "
                f"lookups {lookups:.3f} "
                f"tokens {right:.4f}"
            )
        return " | ".join(parts)

    def run(self) -> None:
        self.draw_pools()
        seen: dict[str, list[list[float]]] = {}
        mark = time.time()
        while self.step < self.args.steps:
            kind, batch = self.next_batch(np.random.default_rng([SEED, self.step]))
            # Only eager attention tells what is attended to.
            self.model.model.language_model.config._attn_implementation = (
                "eager" if kind == "video" else "sdpa"
            )
            seen.setdefault(kind, []).append(self.update(batch))
            self.step += 1
            if self.step % REPORT_EVERY == 0:
                print(self.report(seen, (time.time() - mark) / REPORT_EVERY), flush=True)
                seen, mark = {}, time.time()
            if self.step % SAVE_EVERY == 0:
                self.save()
            if self.step % EVALUATE_EVERY == 0 or self.step == self.args.steps:
                print(f"step {self.step} held out: {self.evaluate()}", flush=True)
                mark = time.time()
        self.save()

    def write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        shutil.copyfile(self.args.start / "config.json", folder / "config.json")  # as it was
        save_companions(folder, build_processor(self.tokenizer))
        print(f"wrote {folder}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach the tiny GLM-4.1V checkpoint video.")
    parser.add_argument("--steps", type=int, default=7200)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/glm41v-tiny-video"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    forward.use_fused_norm()
    trainer = VideoTrainer(args)
    trainer.load()
    trainer.run()
    trainer.write(args.out)


if __name__ == "__main__":
    main()
