# SPDX-License-Identifier: Apache-2.0
"""Results of benchmarks, and the report that `glm41v report` makes of them."""
