# SPDX-License-Identifier: Apache-2.0
"""The `glm41v` command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.checkpoints import TINY
from tests.offline.mixed_files import broken_png
from vllm_glm41v_npu import __version__
from vllm_glm41v_npu.cli import app
from vllm_glm41v_npu.cli.ask import Video, _counts, _open, conversation

PICTURES = TINY.parent / "pictures"
runner = CliRunner()


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "noise.jpg"
    Image.effect_noise((300, 200), 80).save(path)
    return path


def test_version():
    """Guards against a second place that holds the version."""
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"vllm-glm41v-npu {__version__}\n")


def test_missing_file(tmp_path):
    """Guards against a traceback for a mistyped path."""
    result = runner.invoke(app, ["ask", str(tmp_path / "none.png")])
    assert result.exit_code == 2
    assert "none.png cannot be opened (No such file or directory)" in result.stderr


def test_text_file_named_png(tmp_path):
    """Guards against a traceback for a file that is no picture."""
    path = tmp_path / "text.png"
    path.write_text("not a picture")
    result = runner.invoke(app, ["ask", str(path)])
    assert result.exit_code == 2
    assert "text.png is not a picture" in result.stderr
    assert result.stderr.count("\n") == 1


def test_truncated_jpeg(picture):
    """Guards against an engine started for a picture that cannot be decoded."""
    picture.write_bytes(picture.read_bytes()[:3000])
    result = runner.invoke(app, ["ask", str(picture)])
    assert result.exit_code == 2
    assert "noise.jpg cannot be decoded" in result.stderr


def test_decompression_bomb(tmp_path):
    """Guards against a traceback, or gigabytes of memory, for a small file with a huge picture."""
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    result = runner.invoke(app, ["ask", str(path)])
    assert result.exit_code == 2
    assert "bomb.png is too large" in result.stderr


def test_bad_second_picture_is_named(picture, tmp_path):
    """Guards against an error that does not say which of several pictures it is about."""
    result = runner.invoke(app, ["ask", str(picture), str(tmp_path / "second.png")])
    assert result.exit_code == 2
    assert "second.png" in result.stderr


def test_media_come_before_the_question(picture, tmp_path):
    """Guards against another order than the model was trained with, and a video's other form."""
    clip = tmp_path / "clip.MP4"
    clip.write_bytes(b"0123")
    media = [_open(picture), _open(clip)]
    assert isinstance(media[1], Video)
    (message,) = conversation(media, "What?")
    assert [part["type"] for part in message["content"]] == ["image_pil", "video_url", "text"]
    assert message["content"][1]["video_url"]["url"] == "data:video/mp4;base64,MDEyMw=="


def test_each_kind_of_file_is_counted():
    """Guards the limits that the engine starts with: it makes room for the media of this call."""
    picture, clip = Image.new("RGB", (1, 1)), Video(b"")
    assert _counts([clip, picture, clip]) == {"image": 1, "video": 2}


def test_content_says_what_is_asked_about(picture, tmp_path):
    """Guards a clip that is opened as a picture, or a picture as a clip, because of its name."""
    clip = tmp_path / "clip.png"
    clip.write_bytes((TINY.parent / "videos" / "numbers.mp4").read_bytes())
    still = picture.rename(tmp_path / "still.mp4")
    assert isinstance(_open(clip), Video)
    assert isinstance(_open(still), Image.Image)


def test_a_picture_that_pillow_fails_at(tmp_path):
    """Guards a traceback for a damaged PNG, at which Pillow raises SyntaxError."""
    (tmp_path / "broken.png").write_bytes(broken_png())
    result = runner.invoke(app, ["ask", str(tmp_path / "broken.png")])
    assert result.exit_code == 2
    assert "broken.png cannot be decoded" in result.stderr


@pytest.mark.timeout(60)
def test_what_is_no_file_is_not_waited_for(tmp_path):
    """Guards a command that hangs at a pipe."""
    os.mkfifo(tmp_path / "pipe.png")
    result = runner.invoke(app, ["ask", str(tmp_path / "pipe.png")])
    assert result.exit_code == 2
    assert "pipe.png cannot be opened (it is a folder, a pipe or a device" in result.stderr


def test_a_video_that_is_not_there(tmp_path):
    """Guards against a traceback, or a word about pictures, for a mistyped video."""
    result = runner.invoke(app, ["ask", str(tmp_path / "clip.mp4")])
    assert result.exit_code == 2
    assert "clip.mp4 cannot be opened (No such file" in result.stderr
    assert "picture or video file" in result.stderr


# As sitecustomize.py on PYTHONPATH, this makes every process behave as without {package}.
HIDE = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] == "{package}"
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


def ask(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / "glm41v"), "ask", *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **environment}, text=True, capture_output=True, timeout=600
    )


def test_answers_about_several_pictures(tmp_path):
    """Guards against any break between the command and the answer, through the real engine, and
    against a run-time need of torchvision or a C++ compiler, which few servers have."""
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(package="torchvision"))
    written = json.loads((PICTURES / "answers.json").read_text())
    names = list(written)[:2]
    pictures = [PICTURES / name for name in names]
    question = "What numbers are in the pictures?"
    options: list[str | Path] = ["--model", TINY, "--question", question]
    result = ask(*options, *pictures, PYTHONPATH=str(tmp_path), CXX="no-such-compiler")
    assert result.returncode == 0, result.stderr
    assert f"<answer>{', '.join(written[name] for name in names)}</answer>" in result.stdout


def test_model_that_is_not_there(picture, tmp_path):
    """Guards against a traceback for a mistyped model."""
    result = ask("--model", tmp_path / "no-model", picture)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "no-model could not answer: " in result.stderr


@pytest.mark.parametrize(("package", "name"), [("vllm", "vLLM"), ("torch", "torch")])
def test_what_is_not_installed_is_named(picture, tmp_path, package, name):
    """Guards against an ImportError's traceback where the plugin is installed without vLLM."""
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(package=package))
    result = ask(picture, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: {name} is not installed in this Python")
    assert result.stderr.count("\n") == 1
