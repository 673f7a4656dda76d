# SPDX-License-Identifier: Apache-2.0
"""What hypothesis makes of parts of a prompt: right, nearly right, and of no shape at all.

No host here has to be looked up, which may take a resolver's whole time.
"""

from __future__ import annotations

import base64
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.end_to_end.servers import PICTURES, VIDEOS, data_uri, video_uri

BOUNDED = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""The same examples in every run, for tests that share a server."""

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NUMBERS = st.integers(-5, 5) | st.integers() | st.floats() | st.sampled_from([1e300, 2**63])

PICTURE = data_uri((PICTURES / "printed.png").read_bytes())
CLIP = video_uri((VIDEOS / "numbers.mp4").read_bytes())
BROKEN = [PICTURE[:-200], CLIP[: len(CLIP) // 2], f"data:image/png;base64,{'A' * 2_000_000}"]
BROKEN += [
    "",
    "QUJD",
    "data:",
    "data:image/png;base64",
    "data:image/png;base64,\u00e9\u00e9",
    "1.mp4",
]
BROKEN += ["data:video/jpeg;base64,,", "/etc/passwd", "/etc/none.png", "//host/1.png"]
SCHEMES = ["http://", "http://127.0.0.1/", "https://[::1]/1.png", "http://[", "http://a b/"]
SCHEMES += ["ftp://127.0.0.1/", "javascript:alert(1)", "blob:null", "http://127.0.0.1:99999/"]
SCHEMES += ["file:///etc/passwd", "file://", "file://[", "file:///a%00b", "file://host/etc/passwd"]
SCHEMES += [VIDEOS.as_uri(), f"{VIDEOS.as_uri()}/../pictures/photo.jpg", "http://\x00/"]
HEADS = ["data:image/png;base64,", "data:video/mp4;base64,", "data:video/jpeg;base64,"]
HEADS += ["DATA:image/png;base64,", "data:image/svg+xml;base64,", "data:,", "data:;base64,"]


def _url(head: str, start: bytes, data: bytes) -> str:
    return head + base64.b64encode(start + data).decode()


URLS = st.one_of(
    st.sampled_from([PICTURE, CLIP]),
    st.sampled_from(BROKEN),
    st.sampled_from(SCHEMES),
    st.builds(_url, st.sampled_from(HEADS), st.just(b"\x89PNG\r\n\x1a\n"), st.binary(max_size=40)),
    st.builds(_url, st.sampled_from(HEADS), st.just(b""), st.binary(max_size=40)),
    st.builds(str.__add__, st.sampled_from(HEADS), st.text(max_size=20)),
    st.text(max_size=20),
)
OBJECTS = st.fixed_dictionaries({"url": URLS}, optional={"detail": st.just("low") | ANYTHING})
MEDIA = st.one_of(URLS, OBJECTS, st.fixed_dictionaries({"url": ANYTHING}), ANYTHING)
KINDS = ["image_url", "video_url"]
# "input_audio" is not among them: vLLM 0.23.0 answers 500 where it is no object, before it asks
# whether the model hears anything.
OTHER_KINDS = ["text", "image_embeds", "image_pil", "input_image", "audio_url"]


def _part(kind: str, medium: Any) -> dict[str, Any]:
    return {"type": kind, kind: medium}


PARTS = st.one_of(
    st.builds(_part, st.sampled_from(KINDS), OBJECTS),
    st.dictionaries(st.sampled_from(KINDS), URLS, min_size=1),  # vLLM needs no "type" here
    st.builds(_part, st.sampled_from(KINDS), MEDIA),
    st.builds(_part, st.sampled_from(OTHER_KINDS), MEDIA),
    st.dictionaries(st.sampled_from(["type", *KINDS]), MEDIA),
    st.just({"type": "text", "text": "Hi"}),
    ANYTHING,
)
"""Of a prompt of /generate, or of a chat's message."""
