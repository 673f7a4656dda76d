# SPDX-License-Identifier: Apache-2.0
"""W8A8SC: its container, its codecs, the split over ranks, and the compressor."""
