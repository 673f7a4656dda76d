# SPDX-License-Identifier: Apache-2.0
"""The hooks of mkdocs.yml, and facts in the pages that the code can confirm.

`make docs` checks that every link of the built site leads somewhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.doc_pages import PAGES, ROOT
from tests.test_architecture import TREES, floor, inner, room
from tools import docs_site
from vllm_glm41v_npu.serving.mindie.config import CHECKED, TRANSLATED, WITHOUT_MEANING

DOCS = ROOT / "docs"


@pytest.mark.parametrize(("page", "language"), [("mindie.md", "en"), ("mindie.zh.md", "zh")])
def test_every_key_of_mindie_is_there(page: str, language: str) -> None:
    """Guards against a key that the code knows and the page does not, and a missing translation."""
    text = docs_site.page_markdown((DOCS / page).read_text(), language)
    rows = re.findall(r"^\| `((?:\w+\.)*\w+)` \| (.+) \|$", text, re.MULTILINE)
    keys = [key for key, _ in rows if key in {*TRANSLATED, *CHECKED, *WITHOUT_MEANING}]
    assert keys == [*TRANSLATED, *CHECKED, *WITHOUT_MEANING]
    meanings = {meaning for key, meaning in rows if key in WITHOUT_MEANING}
    assert all(re.search("[\u4e00-\u9fff]", meaning) for meaning in meanings) == (language == "zh")


def test_no_translation_is_left_over() -> None:
    """Guards against translations of sentences that the code no longer has."""
    table = docs_site.mindie_keys("en")
    words = json.loads(docs_site.WORDS_IN_CHINESE.read_text())
    assert [word for word in words if word not in table] == []


def test_links_are_those_of_the_site() -> None:
    """Guards against links that are right in the repository alone."""
    text = (
        "[中文](page.zh.md)\n\n"
        "[a](page.zh.md#x) [b](../README.md#serve) [c](https://d.e/f) [g](#h)\n"
        "[`i`](../examples/serve.sh) [j](../examples/serve.sh) ![k](images/page.png)\n"
    )
    assert docs_site.page_markdown(text, "en") == (
        "[a](page.md#x) [b](index.md#serve) [c](https://d.e/f) [g](#h)\n"
        "`i` `j` ![k](images/page.png)\n"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[a](none.md)", "A link of .* leads to none.md, which is not there."),
        ("[a](../README.md#none)", "PAGES has no page for README.md#none"),
        ("<!-- include: README.md#none -->", "README.md has no section 'none'"),
    ],
)
def test_what_is_not_there_stops_the_build(text: str, sentence: str) -> None:
    """Guards against a page with a gap."""
    with pytest.raises(docs_site.DocsError, match=sentence):
        docs_site.page_markdown(text, "en")


def test_nothing_is_fetched_from_elsewhere() -> None:
    """Guards against a site that tells another host who reads it, and fails offline."""
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    fine = '<a href="https://b.c">d</a><script src="e.js"></script><link href="f.css">'
    assert docs_site.on_post_page(fine, page=page) == fine
    for text in ('<link rel="x" href="https://b.c/f.css">', "<script src=http://b.c></script>"):
        with pytest.raises(docs_site.DocsError, match="a.md would fetch something, by .*b.c"):
            docs_site.on_post_page(text, page=page)


def quoted_errors(page: str) -> list[str]:
    """Return the texts between backticks in the first column of the tables of a page."""
    return re.findall(r"^\| `([^`]+)` \|", (DOCS / page).read_text(), re.MULTILINE)


def test_errors_are_quoted_as_they_are() -> None:
    """Guards against a page that explains sentences nobody will see."""
    folders = (ROOT / "vllm_glm41v_npu", ROOT / "examples")
    code = "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    code = re.sub(r"""["']\s+f?["']""", "", code)  # string literals joined
    quoted = quoted_errors("troubleshooting.md")
    assert len(quoted) > 30
    assert [sentence for sentence in quoted if sentence not in code] == []
    assert quoted_errors("troubleshooting.zh.md") == quoted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    """Guards against dead links without building the site."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        headings = re.findall(r"^#+ .*$", path.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in map(docs_site.slug, headings), target


MADE_UP = {"NAME", "_a3"}
"""Parts of names that stand for the reader's own."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    """Guards against pages that name a module or a test that was moved or removed."""
    found = re.findall(
        r"`((?:vllm_glm41v_npu|npu_emulator|tests|tools|benchmarks|docker|examples)/[\w/.-]+)`",
        page.read_text(),
    )
    named = {name for name in found if not any(part in name for part in MADE_UP)}
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", ["architecture.md", "architecture.zh.md"])
def test_rooms_and_floors_are_those_of_the_package(page: str) -> None:
    """Guards against a room without a row, a wrong floor, and importers that do not import."""
    importers: dict[str, set[str]] = {}
    for module in TREES:
        for other in inner(module):
            importers.setdefault(room(other), set()).add(room(module))
    rows = re.findall(
        r"^\| (\d) \| ([^|]+) \| [^|]+ \| ([^|]+) \|$", (DOCS / page).read_text(), re.M
    )
    described = []
    for number, names, by in rows:
        rooms = re.findall(r"`(\w+)`", names)
        described += [(name, int(number) - 1) for name in rooms]
        known = set().union(*(importers.get(name, set()) for name in rooms))
        named = {name for name in re.findall(r"`(\w+)`", by) if name in importers}
        assert named - {"backends"} <= known, names
    assert sorted(described) == sorted((name, floor(name)) for name in {*map(room, TREES)} - {""})


@pytest.mark.parametrize("page", ["extend.md", "extend.zh.md"])
def test_a_task_needs_three_files(page: str) -> None:
    """Guards against a house in which a small change goes through many rooms."""
    tasks = (DOCS / page).read_text().split("\n## ")[1:]
    assert [len(re.findall(r"^\d\. ", task, re.MULTILINE)) for task in tasks] == [3] * 5
