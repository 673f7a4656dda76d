# SPDX-License-Identifier: Apache-2.0
"""GLM-4.1V-9B-Thinking for vLLM: on Ascend NPUs through vllm-ascend, elsewhere on the CPU."""

__version__ = "0.1.0"
