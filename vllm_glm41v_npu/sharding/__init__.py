# SPDX-License-Identifier: Apache-2.0
"""What each tensor-parallel rank's network holds, from a checkpoint and without an engine.

Above `models`, whose layouts it applies, and `quant`, which stores what comes out; neither knows of
the other.
"""
