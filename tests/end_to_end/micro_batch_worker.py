# SPDX-License-Identifier: Apache-2.0
"""Worker extension of vLLM: what test_micro_batch_engine.py does in the engine's processes.

Importing this makes linear layers multiply by torch: the numbers of a row then do not depend on how
many rows there are. vLLM's product on the CPU, oneDNN's, sums the last rows in another order.
"""

from __future__ import annotations

from typing import Any

import torch
import vllm._custom_ops

vllm._custom_ops._supports_onednn = False
torch.set_grad_enabled(False)  # which torch's product minds when vLLM measures memory


class MicroBatchWorker:
    """Methods for `collective_rpc`."""

    get_model: Any  # of the worker that this extends

    def cut_from(self, tokens: int) -> int:
        """Cut steps from this many tokens on; returns how many were cut so far."""
        micro_batch = self.get_model().micro_batch
        micro_batch.fewest = tokens
        return micro_batch.steps
