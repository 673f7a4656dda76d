# SPDX-License-Identifier: Apache-2.0
"""The number of cards that a load needs, and the least time they take for it (`glm41v plan`).

Neither torch nor vLLM is loaded.
"""
