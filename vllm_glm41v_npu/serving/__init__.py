# SPDX-License-Identifier: Apache-2.0
"""Additions to vLLM's server for this model: reasoning parser, MindIE's routes, guard, boxes."""
