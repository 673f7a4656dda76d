# SPDX-License-Identifier: Apache-2.0
"""Pictures, videos and prompts of a request, turned into the tensors and tokens of the model."""
