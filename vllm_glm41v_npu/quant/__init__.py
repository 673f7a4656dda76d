# SPDX-License-Identifier: Apache-2.0
"""Quantized checkpoints of msModelSlim: reading, running and making W8A8, W8A8S and W8A8SC."""
