# SPDX-License-Identifier: Apache-2.0
"""The page in a headless Chromium, as a person uses it.

With SCREENSHOTS=FOLDER every test writes what it saw at its end.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from io import BytesIO
from itertools import chain, cycle
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Browser, Locator, Page, expect

from tests.page.conftest import CHROMIUM, Running
from tests.page.fake_server import MODEL, Fake
from vllm_glm41v_npu.serving.grounding import Box, draw_boxes

ASSETS = Path(__file__).resolve().parent.parent.parent / "assets"
PICTURE = ASSETS / "pictures" / "photo.jpg"
CLIP = ASSETS / "videos" / "numbers.mp4"
WITHIN = 60_000  # milliseconds; a busy machine takes its time

expect.set_options(timeout=WITHIN)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="There is no Chromium on PATH. Debian: apt install chromium."
)


class Tab:
    """The page in one tab."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.question = page.get_by_test_id("textbox").last
        self.asked = page.get_by_test_id("user")
        self.said = page.get_by_test_id("bot")
        self.thinking = page.locator(".thought-group")

    def ask(self, text: str, *files: Path) -> None:
        if files:
            self.page.locator("input[type=file]").set_input_files(files)
            thumbnails = self.page.locator(".thumbnail-item")
            expect(thumbnails).to_have_count(len(files))
        self.question.fill(text)
        self.question.press("Enter")

    def set(self, name: str, value: str) -> None:
        self.page.get_by_role("textbox", name=name).fill(value)

    def picture(self, within: Locator) -> Image.Image:
        """The one that is shown there."""
        shown = within.locator("img")
        expect(shown).to_have_count(1)
        response = self.page.request.get(shown.get_attribute("src") or "")
        return Image.open(BytesIO(response.body()))


@pytest.fixture
def tab(chromium: Browser, running: Running, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A fresh one; it asks nobody but the page, and the page nobody but its server."""
    context = chromium.new_context(viewport={"width": 1000, "height": 800}, locale="en-GB")
    asked: list[str] = []
    context.set_default_timeout(WITHIN)
    context.on("request", lambda sent: asked.append(sent.url))
    page = context.new_page()
    page.goto(running.address)
    yield Tab(page)
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{request.node.name}.png")
    context.close()
    others = [url for url in asked if not url.startswith((running.address, "data:", "blob:"))]
    assert others == []
    assert running.outside.paths == []


def test_picture(tab: Tab, fake: Fake) -> None:
    """Guards the way of a picture to the server, and of an answer with thinking and a box back."""
    marked = "<|begin_of_box|>[[100, 200, 600, 700]]<|end_of_box|>"
    said = ({"content": piece} for piece in ("It is at ", marked, "."))
    fake.steps = [{"reasoning": "I look."}, fake.wait, *said]
    tab.ask("Where is the number?", PICTURE)

    expect(tab.thinking).to_contain_text("I look.")  # open, while there is no answer
    fake.go_on.set()
    expect(tab.said.get_by_text("It is at [[100, 200, 600, 700]].")).to_be_visible()
    expect(tab.thinking).to_contain_text("Thinking")
    expect(tab.thinking).not_to_contain_text("I look.")  # folded
    tab.thinking.get_by_text("Thinking").click()
    expect(tab.thinking).to_contain_text("I look.")

    (body,) = fake.bodies
    assert (body["model"], body["stream"]) == (MODEL, True)
    ((part, text),) = (message["content"] for message in body["messages"])
    assert text == {"type": "text", "text": "Where is the number?"}
    prefix, data = part["image_url"]["url"].split(",")
    assert prefix == "data:image/jpeg;base64"
    assert base64.b64decode(data) == PICTURE.read_bytes()
    assert fake.headers[0]["Authorization"] == "Bearer secret"

    drawn = draw_boxes(Image.open(PICTURE), [Box(100, 200, 600, 700)])
    assert ImageChops.difference(tab.picture(tab.said).convert("RGB"), drawn).getbbox() is None


def test_clip_and_a_second_question(tab: Tab, fake: Fake) -> None:
    """Guards the way of a clip, and what is sent of the turn before: no thinking."""
    fake.steps = [{"content": "<think>I see.</think><answer>"}, {"content": "75</answer>"}]
    tab.ask("Which number comes first?", CLIP)
    expect(tab.said.get_by_text("75", exact=True)).to_be_visible()
    expect(tab.page.locator("video")).to_have_count(1)
    expect(tab.thinking).to_have_count(1)

    fake.steps = [{"content": "Yes."}]
    tab.ask("Are you sure?")
    expect(tab.said.get_by_text("Yes.")).to_be_visible()
    first, second = fake.bodies
    (part, _) = first["messages"][0]["content"]
    data = part["video_url"]["url"].removeprefix("data:video/mp4;base64,")
    assert base64.b64decode(data) == CLIP.read_bytes()
    assert second["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": "75"},
        {"role": "user", "content": [{"type": "text", "text": "Are you sure?"}]},
    ]


PASTE = """async (box) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 40;
    const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
    const data = new DataTransfer();
    data.items.add(new File([blob], "image.png", { type: "image/png" }));
    box.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
}"""


def test_pasted_picture(tab: Tab, fake: Fake) -> None:
    """Guards a screenshot's usual way into the page."""
    tab.question.evaluate(PASTE)
    expect(tab.page.locator(".thumbnail-item")).to_have_count(1)
    tab.ask("What is this?")
    expect(tab.said.get_by_text("Hello")).to_be_visible()
    part = fake.bodies[0]["messages"][0]["content"][0]
    _, data = part["image_url"]["url"].split(",")
    assert Image.open(BytesIO(base64.b64decode(data))).size == (40, 40)


def test_stop(tab: Tab, fake: Fake) -> None:
    """Guards against a server that goes on computing what nobody reads, and a lost beginning."""
    fake.steps = chain([{"content": "One "}], cycle([{"content": "two "}, fake.breathe]))
    tab.ask("Count.")
    expect(tab.said).to_contain_text("One two")
    tab.page.locator(".stop-button").click()
    assert fake.hung_up.wait(WITHIN / 1000)
    expect(tab.said).to_contain_text("One two")
    fake.steps = [{"content": "Well."}]
    tab.ask("Go on.")
    expect(tab.said.get_by_text("Well.")).to_be_visible()
    said = fake.bodies[1]["messages"][1]
    assert said["role"] == "assistant" and said["content"].startswith("One two")


def test_settings(tab: Tab, fake: Fake) -> None:
    """Guards each field's place in the request, and that an empty one is the server's to choose."""
    tab.ask("Hi")
    expect(tab.said).to_contain_text("Hello")
    fields = {"temperature", "top_p", "top_k", "repetition_penalty", "max_tokens"}
    assert not fields & set(fake.bodies[0])

    expect(tab.page.get_by_label("Temperature")).not_to_be_visible()
    tab.page.get_by_role("button", name="Settings").click()
    tab.set("System prompt", "Be brief.")
    tab.set("Temperature", "0.5")
    tab.set("Top k", "2")
    tab.set("Most tokens", "64")
    tab.ask("Hi")
    expect(tab.said).to_have_count(2)
    body = fake.bodies[1]
    assert {name: body[name] for name in fields & set(body)} == {
        "temperature": 0.5,
        "top_k": 2,
        "max_tokens": 64,
    }
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}

    tab.set("Top k", "many")
    tab.ask("Hi")
    expect(tab.said.last).to_contain_text("Top k is 'many'; expected a whole number.")
    tab.set("Top k", "")
    tab.set("Temperature", "nan")
    tab.ask("Hi")
    expect(tab.said.last).to_contain_text("Temperature is 'nan'; expected a number.")
    assert len(fake.bodies) == 2


def test_refusals(tab: Tab, fake: Fake) -> None:
    """Guards the server's own sentence on the page, before an answer and within it, and that the
    next question does not bring the refused one along."""
    status = tab.page.locator("#status")
    expect(status).to_contain_text(MODEL)
    fake.status, fake.body = 401, '{"error": "Unauthorized"}'
    tab.ask("One?")
    expect(tab.said).to_contain_text("does not accept the API key (401: Unauthorized)")
    expect(status).to_contain_text("does not accept the API key")
    fake.status, fake.body = 200, ""
    fake.steps = [{"content": "It "}, {"error": {"message": "The picture is too large."}}]
    tab.ask("Two?")
    expect(tab.said.last).to_contain_text("The server broke off: The picture is too large.")
    expect(tab.said.get_by_text("It", exact=True)).to_be_visible()
    fake.steps = [{"content": "Three."}]
    tab.ask("Three?")
    expect(tab.said.get_by_text("Three.")).to_be_visible()
    (message,) = fake.bodies[-1]["messages"]
    assert message["content"] == [{"type": "text", "text": "Three?"}]
    expect(status).to_contain_text(MODEL)


def test_no_server(tab: Tab, running: Running) -> None:
    """Guards against a page that waits, or says nothing, where no server is."""
    sentence = re.compile(f"No server answers at .*:{running.server_port}.* Start one")
    expect(tab.page.locator("#status")).to_contain_text(sentence)
    tab.ask("Hello?", PICTURE)
    expect(tab.said).to_contain_text(sentence)


def test_answer_that_was_cut(tab: Tab, fake: Fake) -> None:
    """Guards against an answer that seems whole, and boxes on one of several pictures."""
    end = {"choices": [{"delta": {"content": " [1, 2, 3, 4]"}, "finish_reason": "length"}]}
    fake.steps = [{"content": "It is"}, end]
    tab.ask("Where?", PICTURE, ASSETS / "pictures" / "printed.png")
    expect(tab.said.get_by_text("all its tokens are used up")).to_be_visible()
    expect(tab.said.get_by_text("this has several")).to_be_visible()
    expect(tab.said.locator("img")).to_have_count(0)


def test_too_many_pictures(tab: Tab, fake: Fake, tmp_path: Path) -> None:
    """Guards the sentence, that nothing is sent, and that the next question is answered."""
    pictures = [tmp_path / f"{number}.jpg" for number in range(17)]
    for picture in pictures:
        picture.write_bytes(PICTURE.read_bytes())
    tab.ask("Which?", *pictures)
    expect(tab.said).to_contain_text("has 17 files")
    assert fake.bodies == []
    tab.ask("And without them?")
    expect(tab.said.last).to_contain_text("Hello")


def test_labels_in_chinese(chromium: Browser, running: Running) -> None:
    """Guards the browser's language."""
    with chromium.new_context(locale="zh-CN") as context:
        page = context.new_page()
        page.goto(running.address)
        expect(page.get_by_role("button", name="设置")).to_be_visible()


def test_nobody_frames_the_page(tab: Tab, running: Running) -> None:
    """Guards the policy that keeps the browser from asking others, whatever gradio's page names."""
    headers = tab.page.request.get(running.address).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
