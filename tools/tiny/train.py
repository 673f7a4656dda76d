# SPDX-License-Identifier: Apache-2.0
"""Train `assets/glm41v-tiny`: GLM-4.1V's architecture, small enough to read numbers on a CPU.

    OMP_NUM_THREADS=1 python -m tools.tiny.train --steps 13600

Seeded; writes a checkpoint every 500 steps and resumes from it. Needs the development extras
(font packages and scikit-learn). A step takes 0.2 to 0.35 s on one AVX2 core, the run over an
hour. The README beside the weights tells how they differ from one run of this. Video comes in a
second stage, `tools.tiny.train_video`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Glm4vForConditionalGeneration, PreTrainedTokenizerFast

from tools.tiny import forward
from tools.tiny.batches import Batch, PicturePool, Prepared, build_batch, prepare
from tools.tiny.checkpoint import build_config, build_processor, save_companions, train_tokenizer
from tools.tiny.ink import handwriting_indices
from tools.tiny.muon import Muon
from tools.tiny.number_pictures import draw_handwritten, draw_written

SEED = 20
PICTURES_A_STEP = 32
FRESH_A_STEP = 5
POOL = 10_000
ADAM_RATE, MUON_RATE = 1e-3, 4e-3
WARM_UP, DECAY_SHARE = 200, 0.75
# (from step, weights of 1, 2, ... digits)
CURRICULUM = (
    (0, (1.0,)),
    (800, (0.4, 0.6)),
    (1200, (0.2, 0.35, 0.45)),
    (1800, (0.2, 0.2, 0.28, 0.32)),
)
SEEING_FIRST, READING_EVERY, ALL_READING = 500, 2, 0.85  # steps, steps, share of the run
SEEING_WEIGHTS = (0.25, 0.10, 0.20, 0.45)
SEVERAL_FROM, SEVERAL_SHARE = 0.35, 0.25  # share of the run, then of the batches
EVALUATE_EVERY, SAVE_EVERY, REPORT_EVERY = 1000, 500, 50


def learning_rate(step: int, steps: int) -> float:
    """Factor of the peak rate: warm-up, plateau, linear decay to zero."""
    decay = int(steps * DECAY_SHARE)
    return min(1.0, (step + 1) / WARM_UP, max(0.0, (steps - step) / decay))


def is_reading(step: int, steps: int) -> bool:
    """Whether this step trains the whole model, or the vision tower on the helper's labels alone.

    Reading is limited by seeing, and a step without the decoder takes little over half the time.
    """
    return step >= SEEING_FIRST and (step % READING_EVERY == 0 or step >= ALL_READING * steps)


def requests_for(
    rng: np.random.Generator, pool: PicturePool, step: int, steps: int
) -> list[list[Prepared]]:
    weights = next(w for start, w in reversed(CURRICULUM) if step >= start)
    if not is_reading(step, steps) and step >= CURRICULUM[-1][0]:
        weights = SEEING_WEIGHTS
    pictures = pool.sample(rng, PICTURES_A_STEP, weights)
    if step < SEVERAL_FROM * steps or rng.random() > SEVERAL_SHARE:
        return [*([p] for p in pictures), []]
    requests = []
    while pictures:
        count = int(rng.integers(2, 4))
        requests.append(pictures[:count])
        pictures = pictures[count:]
    return requests


def heldout_requests() -> dict[str, list[list[Prepared]]]:
    """A fixed quick sample of the held-out splits, seeded unlike the tests' one."""
    rng = np.random.default_rng(SEED + 1)
    digits = handwriting_indices("heldout")
    written = [prepare(draw_written(rng, "heldout")) for _ in range(384)]
    by_hand = [prepare(draw_handwritten(rng, "heldout", [int(i)], 0.5)) for i in digits[::2]]
    return {
        "written": [[p] for p in written],
        "by hand": [[p] for p in by_hand],
        "several": [written[i : i + 3] for i in range(0, 150, 3)],
    }


def accuracy(
    model: Glm4vForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    requests: list[list[Prepared]],
) -> float:
    rng = np.random.default_rng(0)
    right = [
        forward.exact(model, build_batch(rng, tokenizer, requests[i : i + 32], varied=False))
        for i in range(0, len(requests), 32)
    ]
    return float(torch.cat(right).float().mean())


def make_optimizers(
    model: nn.Module, helpers: list[nn.Linear], adam_rate: float, muon_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for all else."""
    matrices: list[torch.Tensor] = []
    others: list[torch.Tensor] = [p for helper in helpers for p in helper.parameters()]
    for name, p in model.named_parameters():
        hidden = any(part in name for part in ("layers.", "blocks.", "merger."))
        (matrices if hidden and p.dim() == 2 else others).append(p)
    adam = torch.optim.AdamW(others, adam_rate, betas=(0.9, 0.98), weight_decay=0, fused=True)
    optimizers = [adam, Muon(matrices, muon_rate)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


class Trainer:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.tokenizer = train_tokenizer()
        self.model = Glm4vForConditionalGeneration(build_config(self.tokenizer))
        forward.initialise(self.model, SEED)
        hidden = self.model.config.text_config.hidden_size
        self.helper = nn.Linear(hidden, 4 * 2 * (forward.NO_DIGIT + 1))
        self.optimizers = make_optimizers(self.model, [self.helper], ADAM_RATE, MUON_RATE)
        self.step = 0
        self.checkpoint = args.work / "training.pt"

    def load(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.helper.load_state_dict(state["helper"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        print(f"resumed at step {self.step}", flush=True)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "helper": self.helper.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
        }
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)

    def update(self, batch: Batch, reading: bool) -> tuple[float, float, float]:
        answer, digits, right = forward.losses(self.model, self.helper, batch, reading)
        (answer + 0.5 * digits if reading else digits).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = learning_rate(self.step, self.args.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad()
        return answer.item(), digits.item(), right.item()

    def run(self) -> None:
        began = time.time()
        pool = PicturePool(POOL, SEED + self.step)
        print(f"{POOL} pictures drawn in {time.time() - began:.0f} s", flush=True)
        heldout, seen, mark = heldout_requests(), [], time.time()
        while self.step < self.args.steps:
            rng = np.random.default_rng([SEED, self.step])
            pool.refresh(FRESH_A_STEP)
            requests = requests_for(rng, pool, self.step, self.args.steps)
            reading = is_reading(self.step, self.args.steps)
            batch = build_batch(rng, self.tokenizer if reading else None, requests)
            seen.append(self.update(batch, reading))
            self.step += 1
            if self.step % REPORT_EVERY == 0:
                loss, digits, right = np.nanmean(seen, 0)
                pace = (time.time() - mark) / len(seen)
                print(
                    f"step {self.step} loss {loss:.4f} digits {digits:.4f} tokens {right:.4f} "
                    f"{pace * 1000:.0f} ms/step {time.time() - began:.0f} s",
                    flush=True,
                )
                seen, mark = [], time.time()
            if self.step % SAVE_EVERY == 0:
                self.save()
            if self.step % EVALUATE_EVERY == 0 or self.step == self.args.steps:
                shares = {k: accuracy(self.model, self.tokenizer, v) for k, v in heldout.items()}
                print(
                    f"step {self.step} held out: "
                    + ", ".join(f"{k} {v:.4f}" for k, v in shares.items()),
                    flush=True,
                )
                mark = time.time()
        self.save()

    def write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        save_companions(folder, build_processor(self.tokenizer))
        print(f"wrote {folder}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny GLM-4.1V checkpoint.")
    parser.add_argument("--steps", type=int, default=13_600)
    parser.add_argument("--work", type=Path, default=Path("/tmp/glm41v-tiny"))
    parser.add_argument("--out", type=Path, default=Path("assets/glm41v-tiny"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    forward.use_fused_norm()
    trainer = Trainer(args)
    trainer.load()
    trainer.run()
    trainer.write(args.out)


if __name__ == "__main__":
    main()
