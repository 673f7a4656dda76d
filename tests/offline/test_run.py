# SPDX-License-Identifier: Apache-2.0
"""`glm41v run` against a real engine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner
from vllm import LLM

from tests.checkpoints import TINY, link_tiny
from tests.engines import engine
from tests.offline.kept import kept
from tools.tiny.evaluate import final_answer
from vllm_glm41v_npu.cli import app
from vllm_glm41v_npu.offline.engine import Runner, TooLong
from vllm_glm41v_npu.offline.tasks import Task, find_tasks

PICTURES, VIDEOS = TINY.parent / "pictures", TINY.parent / "videos"
QUESTION = "What number is written in the picture?"
NUMBERS = json.loads((PICTURES / "answers.json").read_text())
SAMPLING = {"temperature": 0.0, "max_tokens": 64}
ROOT = TINY.parents[1]


LENGTH = 65_536
"""All positions of the model, and of the tiny one."""


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_CPU_KVCACHE_SPACE")  # comes before kv_cache_memory_bytes
        options = {"max_model_len": LENGTH, "kv_cache_memory_bytes": 512 << 20}
        with engine(TINY, disable_log_stats=False, **options) as started:
            yield started


def run(llm: LLM, tasks: list, window: int = 4, limit: int = 900, **options: Any) -> dict:
    runner = Runner(llm, window, SAMPLING, limit, **options)
    return {answer.id: answer for answer in runner.run(tasks)}


def test_every_file_is_answered_once(llm: LLM, tmp_path: Path) -> None:
    """Right answers, and a bad file among the good ones is named and holds up nothing."""
    (tmp_path / "broken.png").write_bytes((PICTURES / "printed.png").read_bytes()[:500])
    (tmp_path / "text.png").write_text("no picture")
    tasks = find_tasks([PICTURES, tmp_path], [QUESTION])
    answers = run(llm, tasks)
    assert answers.keys() == {task.id for task in tasks}
    for name, number in NUMBERS.items():
        answer = answers[str(PICTURES / name)]
        assert final_answer(answer.answer or "") == number, name
        assert answer.input_tokens > 10 and answer.output_tokens > 5
        assert 0 < answer.first_seconds < answer.seconds
    for name, reason in (("broken.png", "truncated"), ("text.png", "not a picture of a kind")):
        assert reason in (answers[str(tmp_path / name)].error or "")


def test_times_of_steps(llm: LLM) -> None:
    """Guards a step that is left out, and an answer that is told in pieces."""
    tasks = find_tasks([PICTURES], [QUESTION])
    plain, timed = run(llm, tasks), run(llm, tasks, times_steps=True)
    for name, answer in timed.items():
        assert answer.answer == plain[name].answer and not plain[name].step_seconds
        assert len(answer.step_seconds) == answer.output_tokens - 1
        assert sum(answer.step_seconds) == pytest.approx(answer.seconds - answer.first_seconds)


REQUESTS = 20


def ask_anew(runner: Runner, folder: Path) -> int:
    """Ask about a video, a text, a broken file and pictures that nobody has seen before."""
    folder = folder / str(len(list(folder.iterdir())))
    folder.mkdir()
    for number in range(REQUESTS - 3):
        noise = Image.effect_noise((60, 60 + number), 50).convert("RGB")
        noise.save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "clip.mp4").write_bytes((VIDEOS / "numbers.mp4").read_bytes())
    tasks = [*find_tasks([folder], [QUESTION]), *find_tasks([], [f"Hello {folder.name}."])]
    answers = list(runner.run(tasks))
    assert [answer.id for answer in answers if answer.error] == [str(folder / "broken.png")]
    return len(answers)


def test_nothing_stays_of_a_request(llm: LLM, tmp_path: Path) -> None:
    """Guards objects of requests that the runner, processor or engine keeps after their end."""
    runner = Runner(llm, 4, SAMPLING | {"max_tokens": 4}, 900)
    assert kept(llm, lambda: ask_anew(runner, tmp_path)) == {}


@pytest.mark.parametrize(
    ("leak", "kind"),
    [
        ("outputs", "vllm.outputs.RequestOutput"),
        ("requests", "vllm.v1.request.Request"),
        ("names", "entries of list"),
    ],
)
def test_what_stays_is_found(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leak: str, kind: str
) -> None:
    """Shows that the test above fails with a leak, be it one string a request."""
    runner = Runner(llm, 4, SAMPLING | {"max_tokens": 4}, 900)
    core: Any = llm.llm_engine.engine_core
    owner, name = {
        "outputs": (runner, "_answer"),
        "requests": (core.engine_core.scheduler, "add_request"),
        "names": (runner, "_start"),
    }[leak]
    original, stays = getattr(owner, name), []

    def keep(item: Any) -> Any:
        stays.append(item.id if leak == "names" else item)
        return original(item)

    monkeypatch.setattr(owner, name, keep)
    found = kept(llm, lambda: ask_anew(runner, tmp_path))
    assert max(more for name, more in found.items() if name.startswith(kind)) >= REQUESTS - 1


def test_lines_and_text(llm: LLM, tmp_path: Path) -> None:
    """Several files a request, own settings, no files at all, a system's turn."""
    files = [str(PICTURES / name) for name in list(NUMBERS)[:2]]
    lines: list[dict[str, Any]] = [
        {"id": "short", "image": files[0], "text": QUESTION, "max_tokens": 3},
        {"id": "two", "image": files, "text": QUESTION},
        {"id": "clip", "video": str(VIDEOS / "numbers.mp4"), "text": QUESTION},
        {"id": "text", "text": "Hello."},
        {"id": "bad", "text": "Hello.", "temperature": -1},
        {"id": "chat", "messages": [{"role": "user", "content": "Hello."}]},
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    answers = run(llm, find_tasks([path], []))
    assert answers["short"].output_tokens == 3 and answers["short"].finish_reason == "length"
    assert answers["two"].input_tokens > answers["short"].input_tokens
    assert answers["clip"].answer
    assert answers["text"].answer == answers["chat"].answer
    assert "temperature" in (answers["bad"].error or "")


def test_one_bad_line_is_one_error(llm: LLM, tmp_path: Path) -> None:
    """Guards a run that ends or hangs at values that the engine cannot read, and their reasons."""
    picture = str(PICTURES / "printed.png")
    bad: list[dict[str, Any]] = [
        *({"text": "a", "seed": seed} for seed in ("a", 2**70, 1.5, True)),
        *({"text": "a", "max_tokens": most} for most in (0, 2**40, "7", 1.5)),
        *({"text": "a", "temperature": value} for value in (float("nan"), float("inf"), "hot")),
        *({"text": "a", "stop": stop} for stop in (5, [5], [""], {"a": 1}, "\ud800")),
        *({"text": text} for text in (5, ["a"], "\ud800")),
        *({"image": name, "text": "a"} for name in ("a\0.png", ".", "n" * 300, "none.png")),
        {"text": "a", "system": [1]},
    ]
    contents = [
        *(5, [5], {"a": 1}, [{"type": "nonsense", "nonsense": 1}], [{"type": "image_url"}]),
        [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}],
        [{"type": "image_url", "image_url": {"url": 5}}],
    ]
    talks = [[{"role": "user", "content": content}] for content in contents]
    talks += [[{"content": "x"}], [{"role": 5, "content": "x"}], "abc", [5], []]  # type: ignore
    bad += [{"messages": messages} for messages in talks]
    good = {"image": picture, "text": QUESTION}
    lines = [line for number, wrong in enumerate(bad) for line in ({**good, "id": number}, wrong)]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    answers = run(llm, find_tasks([path], []))
    right = [str(number) for number in range(len(bad))]
    assert {answers.pop(name).answer for name in right} == {answers_of(llm, good)}
    assert [name for name, answer in answers.items() if not answer.error] == []
    assert len(answers) == len(bad) and not llm.llm_engine.has_unfinished_requests()


def answers_of(llm: LLM, line: dict[str, Any]) -> str | None:
    (answer,) = run(llm, [Task("one", line["text"], (Path(line["image"]),))]).values()
    return answer.answer


def test_long_prompts(llm: LLM) -> None:
    """Lengths count what pictures become; they are refused or left out, as asked."""
    short, long = find_tasks([PICTURES / "printed.png"], ["Hi."])[0], PICTURES / "wide.png"
    tasks = [short, *find_tasks([long], ["word " * 50])]
    lengths = {name: answer.input_tokens for name, answer in run(llm, tasks).items()}
    limit = lengths[str(long)] - 1
    answers = run(llm, tasks, limit=limit, skip_too_long=True)
    assert answers[short.id].error is None
    assert f"has {limit + 1} tokens" in (answers[str(long)].error or "")
    with pytest.raises(TooLong, match="--too-long skip"):
        run(llm, tasks, limit=limit)


def test_the_whole_length_and_the_memory_that_was_asked(llm: LLM) -> None:
    """Guards 65,536 tokens a request, and a KV cache that fills its memory and no more."""
    config = llm.llm_engine.vllm_config
    assert config.model_config.max_model_len == LENGTH
    text, head_size = config.model_config.hf_text_config, config.model_config.get_head_size()
    # Keys and values in float32.
    token_bytes = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * head_size
    block_bytes = token_bytes * config.cache_config.block_size
    assert config.cache_config.num_gpu_blocks == (512 << 20) // block_bytes
    (long,) = find_tasks([], ["7" * 9_000])
    answer = run(llm, [long], limit=LENGTH - 64)[long.id]
    assert answer.input_tokens > 9_000 and answer.answer


def test_options_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: Any) -> None:
        raise ValueError(json.dumps(arguments))

    monkeypatch.setattr("vllm.LLM", refuse)
    options = ["--kv-memory-gb", "3", "--max-batch-size", "5", "--max-input-length", "64512"]
    result = CliRunner().invoke(app, ["run", "--model", str(TINY), "--prompt", "a", *options])
    assert result.exit_code == 1
    arguments = json.loads(result.stderr.split("could not be started: ")[1])
    assert arguments["kv_cache_memory_bytes"] == 3 << 30
    assert arguments["max_num_seqs"] == 5
    assert arguments["max_model_len"] == LENGTH


def test_scaled_positions_are_vllms_to_check(tmp_path: Path, monkeypatch) -> None:
    """Guards lengths over max_position_embeddings that a checkpoint with yarn takes."""
    config = json.loads((TINY / "config.json").read_text())
    config["text_config"]["rope_parameters"] |= {"rope_type": "yarn", "factor": 2.0}
    link_tiny(tmp_path, config)

    def refuse(**arguments: Any) -> None:
        raise ValueError(f"asked for {arguments['max_model_len']}")

    monkeypatch.setattr("vllm.LLM", refuse)
    options = ["--prompt", "a", "--max-input-length", "100000", "--max-output-length", "1000"]
    result = CliRunner().invoke(app, ["run", "--model", str(tmp_path), *options])
    assert result.exit_code == 1 and "asked for 101000" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing is asked"),
        (["--prompt", "a", "--engine", "[]"], "expected a JSON object"),
        (["--prompt", "a", "--max-batch-size", "0"], "max-batch-size"),
        (["--prompt", "a", "--kv-memory-gb", "0"], "kv-memory-gb"),
        (["--prompt", "a", "--max-input-length", "65000"], "66024 tokens together, and the model"),
        (["--prompt", "a", "--parallel-decoding", "ngram", "--decoding-length", "17"], "1 to 16"),
        (["none.png"], "none.png does not exist"),
        (["--prompt", "a", "--resume"], "--resume goes on with an --output"),
        (["--prompt", "\udcff"], "not in the encoding of this terminal"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    """Guards against an engine started for nothing, and a traceback."""
    result = CliRunner().invoke(app, ["run", "--model", str(TINY), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_output_of_an_earlier_run_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "a", "answer": "b"}\n')
    result = CliRunner().invoke(app, ["run", "--prompt", "a", "--output", str(path)])
    assert result.exit_code == 2
    assert "--resume" in result.stderr


def test_run_pa_takes_the_arguments_of_mindie(tmp_path: Path) -> None:
    """In its order, and one device for each that is visible."""
    command = tmp_path / "glm41v"
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    script = tmp_path / "examples" / "run_pa.sh"
    script.parent.mkdir()
    script.write_bytes((ROOT / "examples" / "run_pa.sh").read_bytes())

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {"PATH": path, **variables}
        return subprocess.run(
            ["bash", str(script), *arguments], env=environment, capture_output=True, text=True
        )

    plain = ["--model_path", "M", "--image_path", "F"]
    expected = ["run", "F", "--model", "M", "--prompt", "describe this image"]
    lengths = ["--max-batch-size", "1", "--max-input-length", "3000", "--max-output-length", "256"]
    one = ["--tensor-parallel-size", "1"]
    assert call(*plain).stdout.split("\n")[:-1] == [*expected, *lengths, *one]
    found = call("--trust_remote_code", *plain, "8", "4", "2", ASCEND_RT_VISIBLE_DEVICES="0,1")
    words = found.stdout.split()
    assert words[-3:] == ["--tensor-parallel-size", "2", "--trust-remote-code"]
    assert words[words.index("--max-batch-size") + 1 :: 2][:3] == ["8", "4", "2"]
    wrong = call("--image_path", "F", "--model_path", "M")
    assert wrong.returncode == 2 and "usage:" in wrong.stderr
