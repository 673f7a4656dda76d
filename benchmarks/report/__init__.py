# SPDX-License-Identifier: Apache-2.0
"""Results of benchmarks, and the report that `python -m benchmarks.report` makes of them."""
