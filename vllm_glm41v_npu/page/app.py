# SPDX-License-Identifier: Apache-2.0
"""The page itself, as gradio's ChatInterface."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import AsyncIterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils
from PIL import Image
from starlette.middleware import Middleware

from vllm_glm41v_npu.page.conversation import (
    ERROR,
    NOTE,
    MediaError,
    Message,
    last_media,
    open_picture,
    request,
)
from vllm_glm41v_npu.page.guard import (
    LIMITS,
    BoundedBodies,
    Names,
    NothingFromElsewhere,
    OwnPageOnly,
)
from vllm_glm41v_npu.page.server import Server, ServerError
from vllm_glm41v_npu.page.streamed_answer import StreamedAnswer
from vllm_glm41v_npu.serving.grounding import Box, draw_boxes

FORGET = (3600, 24 * 3600)
"""Seconds between two removals of uploads, and their age then."""

CSS = """
#status { text-align: center }
button[aria-label="Share"] { display: none }  /* would send a picture to a hub */
"""

ENGLISH = {
    "ask": "Ask about pictures or clips: type, paste or drop them here",
    "chat": "Conversation",
    "settings": "Settings",
    "own": "default",
    "system": "System prompt",
    "temperature": "Temperature",
    "top_p": "Top p",
    "top_k": "Top k",
    "repetition_penalty": "Repetition penalty",
    "max_tokens": "Most tokens",
}
CHINESE = {
    "ask": "就图片或视频提问：输入文字，粘贴或拖入文件",
    "chat": "对话",
    "settings": "设置",
    "own": "默认",
    "system": "系统提示词",
    "temperature": "温度",
    "top_p": "Top p",
    "top_k": "Top k",
    "repetition_penalty": "重复惩罚",
    "max_tokens": "最多词元数",
}
"""The words on the page; the browser's language chooses."""

words = gr.I18n(**{"en": ENGLISH, "zh-CN": CHINESE})


def build(server: Server) -> gr.Blocks:
    """Return the page of one server."""

    async def status() -> str:
        try:
            return f"**{await server.model_name()}** at {server.address}"
        except ServerError as error:
            return f"⚠ {error}"

    async def answer(
        question: dict[str, Any], history: list[Message], system: str, *sampling: str
    ) -> AsyncIterator[list[gr.ChatMessage]]:
        reply = StreamedAnswer()
        text, files = question["text"], question["files"]
        try:
            body = _body(sampling)
            body["messages"] = await to_thread(request, history, files, text, system)
            body["model"] = await server.model_name()
            async for choice in server.stream(body):
                reply.add(choice)
                yield _shown(reply)
            reply.end()
            remarks = await to_thread(_remarks, reply, last_media(history, files))
            yield [*_shown(reply, done=True), *remarks]
        except (SettingError, MediaError, ServerError) as error:
            reply.end()
            yield [*_shown(reply, done=True), _aside(f"⚠ {error}", ERROR)]

    with gr.Blocks(
        title="GLM-4.1V", analytics_enabled=False, delete_cache=FORGET, fill_height=True
    ) as page:
        line = gr.Markdown(elem_id="status")
        settings = _settings()
        chat = gr.ChatInterface(
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
            additional_inputs=settings,
            api_visibility="private",
            concurrency_limit=None,
        )
        asks = [page.load, chat.textbox.submit, chat.chatbot.retry]
        gr.on(asks, status, outputs=line, show_progress="hidden", api_visibility="private")
    return page


async def _fetch_nothing(url: str, cache_dir: str) -> str:
    raise gr.Error("This page fetches no URLs. Save the file, and upload it.")


def launch(page: gr.Blocks, names: Names, port: int, uploads: Path) -> None:
    """Serve the page until it is interrupted.

    Args:
        names: Where it listens, and by which names browsers come.
        uploads: The folder where gradio keeps files.
    """
    # Gradio would fetch any URL that a request names in place of an upload, of any size.
    processing_utils.async_ssrf_protected_download = _fetch_nothing
    middleware = [
        Middleware(NothingFromElsewhere),
        Middleware(OwnPageOnly, names=names),
        Middleware(BoundedBodies, folder=uploads),
    ]
    page.launch(
        server_name=names.host,
        server_port=port,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=LIMITS.upload,
        quiet=True,
        i18n=words,
        css=CSS,
        app_kwargs={"middleware": middleware},
    )


SAMPLING = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "repetition_penalty": float,
    "max_tokens": int,
}
"""Fields of a request that the page shows, and their types."""


class SettingError(Exception):
    """A setting is no number; the message is for the person at the page."""


def _settings() -> list[gr.Textbox]:
    """Return the fields of settings, all of them texts: gradio's numbers are never empty."""
    with gr.Accordion(words("settings"), open=False):
        system = gr.Textbox("", label=words("system"), lines=2)
        with gr.Row():
            own = words("own")
            fields = [
                gr.Textbox("", label=words(name), placeholder=own, max_lines=1, min_width=120)
                for name in SAMPLING
            ]
    return [system, *fields]


def _body(sampling: Sequence[str]) -> dict[str, Any]:
    """Return a request without its messages; the server chooses fields left empty.

    Raises SettingError.
    """
    body: dict[str, Any] = {"stream": True, "chat_template_kwargs": {"keep_tags": "boxes"}}
    for (name, number), text in zip(SAMPLING.items(), sampling, strict=True):
        if not text.strip():
            continue
        try:
            body[name] = number(text)
            if not isfinite(body[name]):
                raise ValueError
        except ValueError:
            kind = "whole number" if number is int else "number"
            raise SettingError(f"{ENGLISH[name]} is {text!r}; expected a {kind}.") from None
    return body


def _shown(reply: StreamedAnswer, done: bool = False) -> list[gr.ChatMessage]:
    """Return the thinking, folded once the answer begins, and the answer."""
    shown = []
    if reply.thinking:
        folded = {"status": "done"} if done or reply.content else {}
        shown.append(gr.ChatMessage(reply.thinking, metadata={"title": "Thinking", **folded}))
    if reply.content:
        shown.append(gr.ChatMessage(reply.content))
    return shown


def _remarks(reply: StreamedAnswer, media: list[str]) -> list[gr.ChatMessage]:
    """Return the picture with the answer's boxes, and notes about the answer."""
    remarks: list[Any] = []
    if reply.cut:
        remarks.append("The answer ends here, as all its tokens are used up.")
    if not reply.content and not reply.thinking:
        remarks.append("The answer is empty.")
    if boxes := reply.boxes():
        remarks += _drawn(boxes, media)
    return [_aside(remark, NOTE) for remark in remarks]


def _drawn(boxes: list[Box], media: list[str]) -> list[Any]:
    """Return the picture with boxes, or a sentence where it cannot be drawn."""
    if len(media) > 1:
        return ["Boxes are drawn where the question has one picture; this has several."]
    try:
        pictures = [picture for path in media if (picture := open_picture(path))]
        return [gr.Image(draw_boxes(picture, boxes), format="png") for picture in pictures]
    except (OSError, Image.DecompressionBombError) as error:
        return [f"The boxes cannot be drawn: {error}"]


def _aside(content: Any, kind: str) -> gr.ChatMessage:
    return gr.ChatMessage(content, metadata={"id": kind})
