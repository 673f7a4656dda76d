# SPDX-License-Identifier: Apache-2.0
"""Ask GLM-4.1V about picture files without a server: one request each, then one with several.

    python examples/offline_image.py [--model DIR] [--pictures DIR]

The folder holds picture files and an answers.json that maps file names to the number in them.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "assets"
ONE = "What number is written in the picture?"
SEVERAL = "What numbers are in the pictures?"


def message(pictures: list[Path], question: str) -> list[dict]:
    """Return one user message: the pictures, then the question."""
    from PIL import Image

    parts: list[dict] = [{"type": "image_pil", "image_pil": Image.open(p)} for p in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def check_installed() -> None:
    """End in a sentence where vLLM or the plugin is missing."""
    for found, name in (
        (find_spec("vllm"), "vLLM"),
        (entry_points(group="vllm.general_plugins", name="glm41v_npu"), "vllm-glm41v-npu"),
    ):
        if not found:
            raise SystemExit(
                f"{name} is not installed in this Python: run `make demo`, "
                "or follow the installation in README.md."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ASSETS / "glm41v-tiny"))
    parser.add_argument("--pictures", type=Path, default=ASSETS / "pictures")
    arguments = parser.parse_args()
    check_installed()
    expected = json.loads((arguments.pictures / "answers.json").read_text())

    from vllm import LLM, SamplingParams

    print(f"Starting vLLM with {arguments.model}; this takes a minute or so ...", flush=True)
    started = time.perf_counter()
    # Compiling the network would take longer than these few answers.
    llm = LLM(arguments.model, max_model_len=2048, enforce_eager=True)
    print(f"The engine started in {time.perf_counter() - started:.1f} s.\n")

    requests = [([name], ONE) for name in expected] + [(list(expected)[:3], SEVERAL)]
    for names, question in requests:
        pictures = [arguments.pictures / name for name in names]
        started = time.perf_counter()
        output = llm.chat(
            message(pictures, question),
            SamplingParams(temperature=0, max_tokens=64),
            use_tqdm=False,
        )[0]
        seconds = time.perf_counter() - started
        print(f"{', '.join(names)}: {question}")
        print(f"  {output.outputs[0].text}")
        print(f"  written: {', '.join(expected[name] for name in names)}   {seconds:.2f} s\n")


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
