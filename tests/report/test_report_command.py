# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.report`."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from typer.testing import CliRunner

from benchmarks.report.__main__ import app
from tests.report.conftest import RESULTS, write_all

runner = CliRunner()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[str, str]:
    """The page, and the Markdown."""
    results, written = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("report")
    write_all(results)
    page, text = written / "report.html", written / "report.md"
    arguments = [str(results), "--output", str(page), "--markdown", str(text)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return page.read_text(), text.read_text()


def test_page_needs_nothing_else(made):
    """Guards against a page that looks different, or tells others, where it is read."""
    page, _ = made
    assert not re.search(r"<script|<link|<img|\ssrc=|@import|url\((?!#)", page)
    assert all(link.startswith("#") for link in re.findall(r'(?<!:)href="([^"]+)"', page))


def test_page_has_every_plot(made):
    """Guards against a plot that is left out, or is no element a browser can show."""
    page, _ = made
    headings = ("times better than the peer", "Share of the floor", "against load", "By type of")
    assert all(heading in page for heading in headings)
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 4
    texts = [" ".join(ElementTree.fromstring(svg).itertext()) for svg in svgs]
    assert any("requests at once" in text and "in-tree p99" in text for text in texts)


def test_tables_hold_every_figure(made):
    """Guards against a row that is lost, or a figure under another heading."""
    page, text = made
    assert "| first token | a\\|b | ms | 2 (1 to 4) | in-tree | 4 (2 to 6) | 2 (1 to 3) |" in text
    assert "| first token | no peer | ms | 3 | - | - | - |" in text
    assert "| first token | peer alone | ms | - | in-tree | 1,234 | - |" in text
    assert "| first token | p99, requests at once: 4 | ms | 4 | in-tree | 5 | 1.25 |" in text
    assert "| token |  | ms | 4 | floor | 3 | 75% of it |" in text
    assert page.count('<td class="figure">') == 7 * sum(len(one.rows) for one in RESULTS)


def test_what_was_not_measured_is_told(made):
    """Guards against a failure that the page passes over."""
    page, text = made
    assert "| network | the same on an NPU | this machine has none |" in text
    assert "| broken | all of it | failed: exit code 1 |" in text
    assert "it &lt;fell&gt; over" in page and "a CPU &lt;of ours&gt;" in page


def test_wrong_folder(tmp_path):
    """Guards against a traceback for a mistyped folder."""
    result = runner.invoke(app, [str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "none is no folder; expected a folder of files that" in result.stderr


def test_place_that_cannot_be_written(folder, tmp_path):
    """Guards against a traceback after all the drawing."""
    result = runner.invoke(app, [str(folder), "--output", str(tmp_path / "no" / "x")])
    assert result.exit_code == 1
    assert "cannot be written (No such file or directory)" in result.stderr


def test_missing_package_is_named(folder, monkeypatch):
    """Guards against an ImportError where the extra was not installed."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = runner.invoke(app, [str(folder)])
    assert result.exit_code == 1
    assert "matplotlib is not installed" in result.stderr
    assert "run `make env`" in result.stderr
