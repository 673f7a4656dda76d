# SPDX-License-Identifier: Apache-2.0
"""`glm41v page` beside another program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests.page.conftest import Running


def test_port_that_is_taken(running: Running) -> None:
    """Guards against a traceback where the page is started twice, and gradio's next free port."""
    port = str(urlsplit(running.address).port)
    program = Path(sys.executable).parent / "glm41v"
    result = subprocess.run(
        [program, "page", "--port", port], text=True, capture_output=True, timeout=300
    )
    assert result.returncode == 1
    assert "another program has this port" in result.stderr
    assert "Traceback" not in result.stderr
