# SPDX-License-Identifier: Apache-2.0
"""Look at what `make dist` built, and serve with the wheel alone.

    .venv/bin/python tools/check_dist.py

The wheel is installed into an empty environment, which sees the packages of the Python that this
runs in, but not its editable install of this repository. There `vllm serve` has to find the plugin,
and the tiny model has to answer.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import venv
import zipfile
from pathlib import Path
from typing import Any

from packaging.metadata import ExceptionGroup, Metadata

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a file
    sys.path.insert(0, str(ROOT))

from vllm_glm41v_npu import __version__  # noqa: E402
from vllm_glm41v_npu.processing.media_files import data_url  # noqa: E402

PACKAGE = "vllm_glm41v_npu"
STEM = f"{PACKAGE}-{__version__}"
IN_SDIST = ("LICENSE", "README.md", "SECURITY.md", "PKG-INFO", "pyproject.toml", "setup.py")
NOT_IN_SDIST = ("tests", "tools", "benchmarks", "examples", "npu_emulator", "docs", "assets")
START_SECONDS = 300
VLLM = "from vllm.entrypoints.cli.main import main; main()"
LOOK = """
import json
from importlib import metadata
import vllm_glm41v_npu
groups = ("vllm.general_plugins", "console_scripts")
points = [p for group in groups for p in metadata.entry_points(group=group)]
print(json.dumps({
    "file": vllm_glm41v_npu.__file__,
    "version": metadata.version("vllm-glm41v-npu"),
    "points": {p.name: p.value for p in points if p.value.startswith("vllm_glm41v_npu")},
}))
"""


class DistError(SystemExit):
    """A fault of the release, in a sentence."""


def check(holds: bool, sentence: str) -> None:
    """Raise DistError with `sentence` unless it holds."""
    if not holds:
        raise DistError(sentence)


def check_wheel(path: Path) -> None:
    """The package's own modules, its licence and sound metadata, and nothing else."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"{STEM}.dist-info/METADATA")
    try:
        Metadata.from_email(metadata, validate=True)
    except ExceptionGroup as group:
        problems = "; ".join(map(str, group.exceptions))
        raise DistError(f"An index would refuse {path.name}: {problems}.") from group
    info = {name for name in names if name.startswith(f"{STEM}.dist-info/")}
    check(f"{STEM}.dist-info/licenses/LICENSE" in info, f"{path.name} has no LICENSE.")
    modules = {str(module.relative_to(ROOT)) for module in (ROOT / PACKAGE).rglob("*.py")}
    expected = modules | {f"{PACKAGE}/py.typed"}
    check(
        names - info == expected,
        f"{path.name} differs from {PACKAGE}/ in {sorted((names - info) ^ expected)}.",
    )


def check_sdist(path: Path) -> None:
    """What a wheel is made from, and no test equipment."""
    with tarfile.open(path) as sdist:
        parts = [Path(name).parts[1:] for name in sdist.getnames()]
    first = {part[0] for part in parts if part}
    lacking = [name for name in (*IN_SDIST, PACKAGE) if name not in first]
    check(not lacking, f"{path.name} lacks {', '.join(lacking)}.")
    extra = [name for name in NOT_IN_SDIST if name in first]
    check(not extra, f"{path.name} holds {', '.join(extra)}.")


def install(wheel: Path, folder: Path, environment: dict[str, str]) -> Path:
    """The Python of a new environment in `folder` with the wheel alone, beside what is here."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run(
        [*pip, "--no-deps", "--no-index", str(wheel)], cwd=folder, env=environment, check=True
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    # As a line of its own it is searched last, and the .pth of an editable install there not read.
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def check_installed(python: Path, folder: Path, environment: dict[str, str]) -> None:
    """The installed package is found, of this version, and by vLLM."""
    command = [str(python), "-c", LOOK]
    found = json.loads(subprocess.check_output(command, cwd=folder, env=environment, text=True))
    check(
        Path(found["file"]).is_relative_to(folder),
        f"{PACKAGE} was imported from {found['file']}, and not from the wheel.",
    )
    check(found["version"] == __version__, f"{found['version']} is installed, not {__version__}.")
    expected = {"glm41v_npu": f"{PACKAGE}.plugin:register", "glm41v": f"{PACKAGE}.cli:app"}
    check(found["points"] == expected, f"Its entry points are {found['points']}.")
    said = subprocess.check_output(
        [str(python.parent / "glm41v"), "--version"], env=environment, text=True
    )
    check(said.strip() == f"vllm-glm41v-npu {__version__}", f"glm41v --version says {said!r}.")


def check_served(python: Path, folder: Path, environment: dict[str, str]) -> None:
    """`vllm serve` loads the plugin, and the tiny model reads a picture."""
    port = free_port()
    log = folder / "server.log"
    options = ["--served-model-name", "tiny", "--enforce-eager", "--max-model-len", "2048"]
    command = [str(python), "-c", VLLM, "serve", str(ROOT / "assets/glm41v-tiny"), *options]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--port", port], cwd=folder, env=environment, stdout=output, stderr=output
        )
    try:
        answer = ask(server, f"http://127.0.0.1:{port}")
    except DistError as error:
        raise DistError(f"{error} Its log:\n{log.read_text()}") from error
    finally:
        server.terminate()
        server.wait()
    check("<answer>6021</answer>" in answer, f"The tiny model answered {answer!r}, not 6021.")
    sentence = f"vllm-glm41v-npu {__version__} serves GLM-4.1V"
    check(sentence in log.read_text(), "vllm serve did not load the plugin.")


def ask(server: subprocess.Popen[bytes], address: str) -> str:
    """Its answer about a picture, once it is up."""
    deadline = time.monotonic() + START_SECONDS
    while not healthy(address):
        check(server.poll() is None, f"vllm serve ended with {server.returncode}.")
        check(time.monotonic() < deadline, f"vllm serve was not up in {START_SECONDS} s.")
        time.sleep(1)
    url = data_url((ROOT / "assets/pictures/printed.png").read_bytes(), "image/png")
    picture = {"type": "image_url", "image_url": {"url": url}}
    text = {"type": "text", "text": "What number is written in the picture?"}
    body = {
        "model": "tiny",
        "temperature": 0,
        "max_tokens": 64,
        "messages": [{"role": "user", "content": [picture, text]}],
    }
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        reply: dict[str, Any] = json.load(response)
    return str(reply["choices"][0]["message"]["content"])


def healthy(address: str) -> bool:
    """Whether the server says that it is."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def main() -> None:
    wheel = ROOT / "dist" / f"{STEM}-py3-none-any.whl"
    sdist = ROOT / "dist" / f"{STEM}.tar.gz"
    check(wheel.exists() and sdist.exists(), f"dist/ lacks {STEM}: run `make dist` first.")
    check_wheel(wheel)
    check_sdist(sdist)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        python = install(wheel, folder, environment)
        check_installed(python, folder, environment)
        check_served(python, folder, environment)
    print(f"{wheel.name} and {sdist.name} are sound, and vllm serve answers with the wheel alone.")


if __name__ == "__main__":
    main()
