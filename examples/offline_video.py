# SPDX-License-Identifier: Apache-2.0
"""Ask GLM-4.1V about video files without a server: the first number, the last, one at a second.

    python examples/offline_video.py [--model DIR] [--videos DIR] [--fps FPS]

The folder holds video files and an answers.json that maps file names to the numbers in them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "assets"


def question(moment: str) -> str:
    """Return the question about "first", "last", or a number of seconds."""
    if moment.isdigit():
        return f"Which number is shown at second {moment}?"
    return f"Which number comes {moment}?"


def message(video: Path, text: str) -> list[dict]:
    """Return one user message: the video, then the question."""
    parts = [
        {"type": "video_url", "video_url": {"url": video.resolve().as_uri()}},
        {"type": "text", "text": text},
    ]
    return [{"role": "user", "content": parts}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ASSETS / "glm41v-tiny"))
    parser.add_argument("--videos", type=Path, default=ASSETS / "videos")
    parser.add_argument("--fps", type=float, help="frames a second to look at (the model's own: 2)")
    arguments = parser.parse_args()
    expected = json.loads((arguments.videos / "answers.json").read_text())

    from vllm import LLM, SamplingParams

    print(f"Starting vLLM with {arguments.model}; this takes a minute or so ...", flush=True)
    llm = LLM(
        arguments.model,
        max_model_len=4096,
        enforce_eager=True,
        allowed_local_media_path=str(arguments.videos.resolve()),
    )
    settings = {"fps": arguments.fps} if arguments.fps else None
    for name, answers in expected.items():
        for moment, number in answers.items():
            started = time.perf_counter()
            (output,) = llm.chat(
                message(arguments.videos / name, question(moment)),
                SamplingParams(temperature=0, max_tokens=64),
                use_tqdm=False,
                mm_processor_kwargs=settings,
            )
            seconds = time.perf_counter() - started
            print(f"{name}: {question(moment)}")
            print(f"  {output.outputs[0].text}")
            print(f"  shown: {number}   {seconds:.2f} s\n")


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
