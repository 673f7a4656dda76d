# SPDX-License-Identifier: Apache-2.0
"""How many cards a load needs, and the least time that they can take for it (`glm41v plan`).

Neither torch nor vLLM is loaded.
"""
