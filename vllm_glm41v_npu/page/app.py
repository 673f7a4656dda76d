# SPDX-License-Identifier: Apache-2.0
"""The page itself, as gradio's ChatInterface."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import gradio as gr
from PIL import UnidentifiedImageError
from starlette.middleware import Middleware

from vllm_glm41v_npu.serving.grounding import draw_boxes

from .conversation import ERROR, NOTE, MediaError, Message, last_media, open_picture, request
from .headers import NothingFromElsewhere
from .labels import CHINESE, ENGLISH
from .reply import Reply
from .server import Server, ServerError

MAX_FILE_SIZE = 512 * gr.FileSize.MB
"""What a server of this package takes of a video."""

CSS = ".status { text-align: center } footer { display: none !important }"

words = gr.I18n(**{"en": ENGLISH, "zh-CN": CHINESE})


def build(server: Server) -> gr.Blocks:
    """The page of one server."""

    async def status() -> str:
        try:
            return f"**{await server.model_name()}** at {server.address}"
        except ServerError as error:
            return f"⚠️ {error}"

    async def answer(
        question: dict[str, Any], history: list[Message], system: str, *sampling: float | None
    ) -> AsyncIterator[list[gr.ChatMessage]]:
        reply = Reply()
        text, files = question["text"], question["files"]
        try:
            body = _body(sampling)
            body["messages"] = request(history, files, text, system)
            body["model"] = await server.model_name()
            async for choice in server.stream(body):
                reply.add(choice)
                yield _shown(reply)
            reply.end()
            yield [*_shown(reply, done=True), *_remarks(reply, last_media(history, files))]
        except (ServerError, MediaError) as error:
            reply.end()
            yield [*_shown(reply, done=True), _aside(f"⚠️ {error}", ERROR)]

    with gr.Blocks(title="GLM-4.1V", analytics_enabled=False, fill_height=True) as page:
        line = gr.Markdown(elem_classes="status")
        page.load(status, outputs=line, api_visibility="private")
        gr.ChatInterface(
            answer,
            multimodal=True,
            chatbot=gr.Chatbot(
                label=words("chat"),
                scale=1,
                buttons=["copy"],
                latex_delimiters=[
                    {"left": "$$", "right": "$$", "display": True},
                    {"left": "\\[", "right": "\\]", "display": True},
                    {"left": "\\(", "right": "\\)", "display": False},
                ],
            ),
            textbox=gr.MultimodalTextbox(
                placeholder=words("ask"),
                file_count="multiple",
                file_types=["image", "video"],
                sources=["upload"],
                stop_btn=True,
                autofocus=True,
            ),
            additional_inputs=_settings(),
            additional_inputs_accordion=gr.Accordion(words("settings"), open=False, render=False),
            api_visibility="private",
            concurrency_limit=None,
        )
    return page


def launch(page: gr.Blocks, host: str, port: int) -> None:
    """Serve the page until it is interrupted."""
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=MAX_FILE_SIZE,
        i18n=words,
        css=CSS,
        app_kwargs={"middleware": [Middleware(NothingFromElsewhere)]},
    )


SAMPLING = {  # of a request: the least, the greatest and the step of the field on the page
    "temperature": (0, 2, 0.1),
    "top_p": (0, 1, 0.05),
    "top_k": (-1, None, 1),
    "repetition_penalty": (0, 2, 0.05),
    "max_tokens": (1, None, 1),
}


def _settings() -> list[gr.components.Component]:
    fields: list[gr.components.Component] = [gr.Textbox(label=words("system"), lines=2)]
    for name, (least, most, step) in SAMPLING.items():
        fields.append(
            gr.Number(label=words(name), value=None, minimum=least, maximum=most, step=step)
        )
    return fields


def _body(sampling: Sequence[float | None]) -> dict[str, Any]:
    """A request without its messages; what the person left empty is the server's to choose."""
    given = zip(SAMPLING, sampling, strict=True)
    return {
        "stream": True,
        "chat_template_kwargs": {"keep_tags": "boxes"},
        **{name: value for name, value in given if value is not None},
    }


def _shown(reply: Reply, done: bool = False) -> list[gr.ChatMessage]:
    """The thinking, folded once the answer begins, and the answer."""
    shown = []
    if reply.thinking:
        status = "done" if done or reply.content else "pending"
        shown.append(gr.ChatMessage(reply.thinking, metadata={"title": "💭", "status": status}))
    if reply.content:
        shown.append(gr.ChatMessage(reply.content))
    return shown


def _remarks(reply: Reply, media: list[str]) -> list[gr.ChatMessage]:
    """The picture with the answer's boxes, and what else there is to say about an answer."""
    remarks = []
    if reply.cut:
        remarks.append(_aside("The answer ends here, as all its tokens are used up.", NOTE))
    if not reply.content and not reply.thinking:
        remarks.append(_aside("The answer is empty.", NOTE))
    boxes = reply.boxes()
    if boxes and len(media) > 1:
        remarks.append(
            _aside("Boxes are drawn where the question has one picture; this has several.", NOTE)
        )
    elif boxes and media:
        try:
            picture = open_picture(media[0])
        except (UnidentifiedImageError, OSError) as error:
            remarks.append(_aside(f"The boxes cannot be drawn: {error}", NOTE))
        else:
            if picture:
                remarks.append(_aside(gr.Image(draw_boxes(picture, boxes)), NOTE))
    return remarks


def _aside(content: Any, kind: str) -> gr.ChatMessage:
    return gr.ChatMessage(content, metadata={"id": kind})
