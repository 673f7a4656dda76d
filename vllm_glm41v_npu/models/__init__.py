# SPDX-License-Identifier: Apache-2.0
"""The GLM-4.1V network on vLLM's layers."""
