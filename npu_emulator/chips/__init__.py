# SPDX-License-Identifier: Apache-2.0
"""Tables of what each chip takes; see rules.py for the words."""

from npu_emulator.chips.a2 import ATLAS_A2
from npu_emulator.chips.atlas_310p import ATLAS_310P

CHIPS = {"A2": ATLAS_A2, "_310P": ATLAS_310P}
"""By the names that vllm-ascend's build info uses."""
