# SPDX-License-Identifier: Apache-2.0
"""The chat page: a client of an OpenAI-compatible server, in the browser. Needs gradio."""
