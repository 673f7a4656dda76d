# SPDX-License-Identifier: Apache-2.0
"""Many requests through one engine, without a server: `glm41v run`."""
