# SPDX-License-Identifier: Apache-2.0
"""docs/features.md against the tests that it names: they exist, and run where a row says "yes"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from npu_emulator.settings import CHIPS
from tests.doc_pages import ROOT, TARGETS
from vllm_glm41v_npu import backends

PAGE = ROOT / "docs" / "features.md"
PAGE_ZH = ROOT / "docs" / "features.zh.md"
WORDS = {"yes": "是", "as on CPU": "同 CPU", "not run": "未运行", "no": "否", "–": "–", "": ""}
"""What a cell may say, in English and in Chinese."""

ROWS = {"A2": backends.ATLAS_A2, "310P": backends.ATLAS_310P}
ENVIRONMENTS = ("cpu", "A2", "310P")


class Feature(NamedTuple):
    """One row: its name, a cell for each environment and for hardware, and its proofs."""

    name: str
    cells: tuple[str, ...]
    proofs: list[str]


def features(page: Path) -> list[Feature]:
    """The rows of all tables of six columns, without their headings."""
    found = []
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" |")]
        if line.startswith("|") and len(cells) == 6 and "`" in cells[5]:
            found.append(Feature(cells[0], tuple(cells[1:5]), re.findall(r"`([^`]+)`", cells[5])))
    return found


def marks(tree: ast.Module) -> Iterator[ast.expr]:
    """The expressions of a module's `pytestmark`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            yield from node.value.elts if isinstance(node.value, ast.List) else [node.value]


def skipped_on(mark: ast.expr, chip: str) -> bool:
    """Return True where a `skipif` speaks of the chip and holds on it."""
    if not (isinstance(mark, ast.Call) and ast.unparse(mark.func).endswith("skipif")):
        return False
    known = vars(backends) | {
        "BACKEND": ROWS[chip],
        "CHIPS": CHIPS,
        "current_chip": lambda: CHIPS[chip],
        "EMULATED": True,
    }
    condition = mark.args[0]
    if not {node.id for node in ast.walk(condition) if isinstance(node, ast.Name)} <= {*known}:
        return False
    return bool(eval(compile(ast.Expression(condition), "skipif", "eval"), known))


def environments(source: str) -> set[str]:
    """Where the tests of a module run, by the markers of the module."""
    tree = ast.parse(source)
    expressions = [*marks(tree)]
    words = " ".join(ast.unparse(mark) for mark in expressions)
    if not re.search(r"^ *def test_", source, re.MULTILINE):
        return set()
    if not re.search(r"ALL_LANES|mark\.(cpu|ascend|npu)\b", words):
        return {"cpu"}
    chips = {
        chip
        for chip in CHIPS
        if re.search(r"ALL_LANES|mark\.ascend\b", words)
        and not any(skipped_on(mark, chip) for mark in expressions)
    }
    return chips | ({"cpu"} if re.search(r"ALL_LANES|mark\.cpu\b", words) else set())


def proven(proof: str) -> set[str]:
    """Where a file or the files of a folder run; a command proves nothing by itself."""
    path = ROOT / proof
    files = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
    if " " in proof or not proof.startswith("tests/"):
        return set()
    return set().union(*(environments(file.read_text()) for file in files))


FEATURES = features(PAGE)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name[:50])
def test_a_row_is_proven_where_it_says(feature: Feature) -> None:
    """Guards against "yes" without a test that runs there, and tests that do not exist."""
    for proof in feature.proofs:
        if proof.startswith("make "):
            assert proof.removeprefix("make ") in TARGETS
        else:
            assert (ROOT / proof).exists(), proof
    shown = set().union(*map(proven, feature.proofs))
    claimed = {
        where for where, cell in zip(ENVIRONMENTS, feature.cells, strict=False) if cell == "yes"
    }
    assert claimed <= shown
    assert "as on CPU" not in feature.cells or feature.cells[0] == "yes"
    assert {*feature.cells} <= {*WORDS}
    assert feature.cells[3] in ("", "–"), "a report of `make test-npu` comes first"


def test_both_languages_say_the_same() -> None:
    """Guards against a translation whose rows, cells or proofs differ."""
    chinese = features(PAGE_ZH)
    assert len(FEATURES) > 50
    assert [feature.proofs for feature in chinese] == [feature.proofs for feature in FEATURES]
    expected = [tuple(WORDS[cell] for cell in feature.cells) for feature in FEATURES]
    assert [feature.cells for feature in chinese] == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def test_a(): ...", {"cpu"}),
        ("pytestmark = ALL_LANES\ndef test_a(): ...", {"cpu", "A2", "310P"}),
        ("pytestmark = pytest.mark.ascend\ndef test_a(): ...", {"A2", "310P"}),
        (
            "pytestmark = [*ALL_LANES, pytest.mark.skipif(BACKEND is ATLAS_310P)]\n"
            "def test_a(): ...",
            {"cpu", "A2"},
        ),
        (
            "pytestmark = [pytest.mark.ascend, "
            'pytest.mark.skipif(current_chip() is not CHIPS["310P"])]\n'
            "def test_a(): ...",
            {"310P"},
        ),
        ("pytestmark = pytest.mark.npu\ndef test_a(): ...", set()),
    ],
)
def test_markers_are_read(source: str, expected: set[str]) -> None:
    """Guards the tests above against passing whatever the markers say."""
    assert environments(source) == expected
