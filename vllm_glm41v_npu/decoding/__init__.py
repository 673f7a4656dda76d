# SPDX-License-Identifier: Apache-2.0
"""Parallel decoding: several tokens a step, guessed from what was read and written before.

`settings` turns what users ask for into vLLM's speculative configuration; `trie` remembers and
guesses; `proposer` hands its guesses to vLLM, and `ascend` to vllm-ascend. The network verifies
every guess, so that answers are those without it.
"""
