# SPDX-License-Identifier: Apache-2.0
"""What mkdocs.yml's hooks make of the pages, and what the pages say of the code.

That every link of the built site leads somewhere is checked by `make docs`.
"""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from tests.doc_pages import ROOT
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
    """The first column of the tables of a page, between backticks."""
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
