# SPDX-License-Identifier: Apache-2.0
"""What the Makefile sets, for a bare `pytest`: vLLM reads it at import, in all its processes."""

from __future__ import annotations

import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# The engine runs in the test's own process; tests of servers and of several devices start more.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# More threads than the tiny networks need would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# vLLM compiles its sampler even with enforce_eager.
if shutil.which(os.environ.get("CXX", "g++")) is None:
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
os.environ.pop("VLLM_PLUGINS", None)
