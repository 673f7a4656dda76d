# SPDX-License-Identifier: Apache-2.0
"""An Ascend NPU for tests: vllm-ascend's real engine on a machine without CANN and without a chip.

See README.md beside this file.
"""

from npu_emulator.settings import BUILT

__path__.append(str(BUILT))  # the compiled module `_boxed` is there
