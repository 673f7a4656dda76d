# SPDX-License-Identifier: Apache-2.0
"""Parallel decoding: several tokens a step, from drafts made of earlier prompts and answers.

`settings` turns what users ask for into vLLM's speculative configuration. `trie` remembers texts
and drafts tokens, and `proposer` hands the drafts to vLLM. The network verifies every draft token,
so answers are the same as without parallel decoding.
"""
