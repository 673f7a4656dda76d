# SPDX-License-Identifier: Apache-2.0
"""Everything that imports torch_npu or vllm_ascend; imported on Ascend only."""
