# SPDX-License-Identifier: Apache-2.0
"""The words on the page; the browser's language chooses."""

from __future__ import annotations

ENGLISH = {
    "ask": "Ask about pictures or clips: type, paste or drop them here",
    "chat": "Conversation",
    "settings": "Settings (what is left empty, the server decides)",
    "system": "System prompt",
    "temperature": "Temperature (0: always the likeliest token)",
    "top_p": "Top p",
    "top_k": "Top k",
    "repetition_penalty": "Repetition penalty",
    "max_tokens": "Longest answer, in tokens",
}
CHINESE = {
    "ask": "就图片或视频提问：输入文字，粘贴或拖入文件",
    "chat": "对话",
    "settings": "设置（留空则由服务端决定）",
    "system": "系统提示词",
    "temperature": "温度（0：总取概率最大的词元）",
    "top_p": "Top p",
    "top_k": "Top k",
    "repetition_penalty": "重复惩罚",
    "max_tokens": "回答最长词元数",
}
