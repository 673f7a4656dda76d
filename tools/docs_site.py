# SPDX-License-Identifier: Apache-2.0
"""Hooks of mkdocs.yml: turn the pages of docs/ into pages of the site.

A page is read in the repository too, so its links are those of the repository. On the site

    <!-- include: README.md#install -->        becomes that section, or without #... that file
    <!-- mindie-keys -->                       becomes a table of MindIE's keys, made from the code

and links lead to pages in the reader's language. A link that leads to nothing stops the build.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vllm_glm41v_npu.serving.mindie import config as mindie_config

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
WORDS_IN_CHINESE = Path(__file__).with_suffix(".zh.json")

PAGES = {
    "README.md#install": "install.md",
    "README.md#serve": "index.md#serve",
    "README.md#服务": "index.md#服务",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""File or section outside of docs/ to its page; other files are named and not linked."""

LANGUAGE_LINK = re.compile(r"^\[(中文|English)\]\([^)]*\)\n+", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")
FETCHED = re.compile(
    r"""<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=["']?https?://[^"'>\s]*"""
)
INCLUDE = re.compile(r"^<!-- include: ([^\s#]+)(?:#(\S+))? -->$", re.MULTILINE)


class DocsError(ValueError):
    """A page names a file or a section that does not exist."""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the Markdown of a page for the site; mkdocs calls it for each page and language."""
    return page_markdown(markdown, "zh" if page.file.locale == "zh" else "en")


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Return the HTML of a page unchanged, if it loads nothing from another host.

    Raises:
        DocsError: It would.
    """
    if found := FETCHED.search(output):
        raise DocsError(f"{page.file.src_uri} would fetch something, by {found[0]!r}.")
    return output


def page_markdown(markdown: str, language: str) -> str:
    """Return a page of docs/ as the site has it."""
    markdown = with_site_links(markdown, DOCS)
    markdown = INCLUDE.sub(lambda found: included(found[1], found[2]), markdown)
    return markdown.replace("<!-- mindie-keys -->", mindie_keys(language))


def included(name: str, anchor: str | None) -> str:
    """Return a file of this repository, or its section `anchor`, without the heading."""
    path = ROOT / name
    text = path.read_text()
    if anchor:
        sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
        found = [section for section in sections if slug(section.splitlines()[0]) == anchor]
        if not found:
            raise DocsError(f"{name} has no section {anchor!r}; it is named in an include.")
        text = found[0]
    _, _, body = text.partition("\n")
    return with_site_links(body, path.parent).strip()


def slug(heading: str) -> str:
    """Return the anchor of a heading, which is the same on the site and in the repository."""
    return re.sub(r"[^\w -]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def with_site_links(markdown: str, folder: Path) -> str:
    """Return Markdown of a file in `folder` with links for the site, which chooses the language."""

    def linked(found: re.Match[str]) -> str:
        text, target = found.groups()
        name, _, anchor = target.partition("#")
        path = (folder / name).resolve()
        if not path.exists():
            raise DocsError(f"A link of {folder} leads to {target}, which is not there.")
        anchor = f"#{anchor}" if anchor else ""
        relative = path.relative_to(ROOT).as_posix().replace(".zh.md", ".md")
        if path.suffix == ".md" and path.is_relative_to(DOCS):
            return f"[{text}]({relative.removeprefix('docs/')}{anchor})"
        if page := PAGES.get(relative + anchor):
            return f"[{text}]({page})"
        if anchor:
            raise DocsError(f"PAGES has no page for {relative}{anchor}, which is linked to.")
        return text if "`" in text else f"`{text}`"

    return LINK.sub(linked, LANGUAGE_LINK.sub("", markdown))


def mindie_keys(language: str) -> str:
    """Return tables of every key of MindIE's config.json with its meaning for `glm41v serve`."""
    words = json.loads(WORDS_IN_CHINESE.read_text()) if language == "zh" else {}

    def said(text: str) -> str:
        if re.fullmatch(r"--[a-z-]+|[A-Z_]+", text):  # an option or a variable
            return f"`{text}`"
        if language == "zh" and text not in words:
            raise DocsError(f"{WORDS_IN_CHINESE.name} has no translation of {text!r}.")
        return words.get(text, text)

    parts = (
        ("Translated", {key: value.option for key, value in mindie_config.TRANSLATED.items()}),
        ("Checked", mindie_config.CHECKED),
        ("Without a meaning", mindie_config.WITHOUT_MEANING),
    )
    lines = []
    for title, keys in parts:
        lines += [f"## {said(title)}", "", f"| {said('Key')} | {said('Here')} |", "|---|---|"]
        lines += [f"| `{key}` | {said(meaning)} |" for key, meaning in keys.items()]
        lines.append("")
    return "\n".join(lines)
