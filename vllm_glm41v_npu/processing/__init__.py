# SPDX-License-Identifier: Apache-2.0
"""From what a request carries to what the model reads: pictures, prompts, vLLM's processor."""
