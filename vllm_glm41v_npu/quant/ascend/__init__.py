# SPDX-License-Identifier: Apache-2.0
"""This model's quantised layers on vllm-ascend: its schemes where they are right, ours elsewhere.

`config` chooses a scheme for each layer, from those of `a2` or `atlas_310p`. Imported on Ascend
alone.
"""
