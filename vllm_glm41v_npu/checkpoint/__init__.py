# SPDX-License-Identifier: Apache-2.0
"""Facts of a checkpoint: its folder, config, names, shapes and description. Imports no torch."""
