# SPDX-License-Identifier: Apache-2.0
"""What serving this model needs beside vLLM: its reasoning parser, MindIE's route, boxes."""
