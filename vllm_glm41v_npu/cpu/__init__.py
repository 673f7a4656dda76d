# SPDX-License-Identifier: Apache-2.0
"""Everything that only a CPU runs: the quantization config, int8 and float linear layers."""
