# SPDX-License-Identifier: Apache-2.0
"""The format of results."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from benchmarks.report.results import ResultsError, Row, Spread, compare, read
from tests.report.conftest import RESULTS


def test_results_come_back_as_they_were(folder):
    """Guards against a field that is written and read differently."""
    assert read(folder) == sorted(RESULTS, key=lambda result: result.name)


def test_gain_is_taken_round_by_round():
    """Guards against a ratio of medians, which drift of the machine would change."""
    row = compare("time", "", "ms", [1.0, 2.0, 4.0], "in-tree", [2.0, 6.0, 4.0])
    assert row.gain == Spread(median=2.0, min=1.0, max=3.0, rounds=3)


def test_gain_where_more_is_better():
    """Guards against a throughput that is shown upside down."""
    row = compare("rate", "", "token/s", [6.0], "in-tree", [3.0], higher_is_better=True)
    assert row.gain == Spread(median=2.0, min=2.0, max=2.0, rounds=1)


def test_no_gain_over_nothing():
    """Guards against a benchmark that ends in a division by zero after all its work."""
    row = compare("right", "", "%", [1.0], "float", [0.0], higher_is_better=True)
    assert row.theirs and row.gain is None


@pytest.mark.parametrize("field", ["peer", "load"])
def test_half_a_row_is_refused(field):
    """Guards against a row that a report could not label."""
    given = {"what": "time", "case": "", "unit": "ms", "ours": None}
    with pytest.raises(ValidationError, match="come together"):
        Row.model_validate(given | {field: "1"})


def test_a_file_that_is_something_else_is_named(folder):
    """Guards against a traceback, or a silently smaller report, for a file put there by hand."""
    (folder / "other.json").write_text('{"times": [1, 2]}')
    with pytest.raises(ResultsError, match=r"other\.json is no result.*move other files"):
        read(folder)


def test_another_format_is_named(folder):
    """Guards against results of another version that are read as if they were of this one."""
    path = folder / "network.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "glm41v-benchmark/9"}))
    with pytest.raises(ResultsError, match=r"network\.json .*: format: .*'glm41v-benchmark/1'"):
        read(folder)


def test_an_empty_folder_is_named(tmp_path):
    """Guards against an empty report."""
    with pytest.raises(ResultsError, match="has no JSON file; expected"):
        read(tmp_path)
