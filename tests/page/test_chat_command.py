# SPDX-License-Identifier: Apache-2.0
"""`glm41v page`, where it does not start."""

from __future__ import annotations

import importlib

import pytest
from typer.testing import CliRunner

from vllm_glm41v_npu.cli import app

command = importlib.import_module("vllm_glm41v_npu.cli.page")  # the package has its function


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an ImportError's traceback where the extra is not installed."""
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["page"])
    assert result.exit_code == 1
    assert "gradio is not installed" in result.stderr
    assert "pip install 'vllm-glm41v-npu[page]'" in result.stderr


@pytest.mark.parametrize("server", ["localhost:8000", "127.0.0.1", "ftp://a", "http://"])
def test_what_is_no_address(server: str) -> None:
    """Guards against a page that can ask nobody."""
    result = CliRunner().invoke(app, ["page", "--server", server])
    assert result.exit_code == 2
    assert "is no address" in result.stderr


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_address_as_other_clients_want_it(path: str) -> None:
    """Guards against /v1/v1 in the page's requests."""
    assert command._address(f"https://a.example/proxy{path}") == "https://a.example/proxy"
