# SPDX-License-Identifier: Apache-2.0
"""The words on the page; the browser's language chooses."""

from __future__ import annotations

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
