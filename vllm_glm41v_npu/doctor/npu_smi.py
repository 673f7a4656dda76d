# SPDX-License-Identifier: Apache-2.0
"""Parser of the table that `npu-smi info` prints."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vllm_glm41v_npu.backends import CHIPS, Backend

MIB = 1 << 20

# Two lines a chip:  | 0     910B3         | OK            | 90.4    32       0    / 0             |
#                    | 0                   | 0000:C1:00.0  | 0       0 / 0    3359 / 65536         |
# On a chip without HBM the last column is missing; the second line may begin with two numbers.
FIRST = re.compile(
    r"\|\s*(?P<card>\d+)\s+(?P<name>[\w-]*[A-Za-z][\w-]*)\s*\|\s*(?P<health>[A-Za-z]+)\s*\|"
)
SECOND = re.compile(r"\|\s*\d+(\s+[\d-]+)?\s*\|\s*\S+\s*\|(?P<usage>.*)\|")
USED_OF_TOTAL = re.compile(r"(\d+)\s*/\s*(\d+)")


@dataclass(frozen=True)
class Chip:
    """One chip of a card; `used` and `total` are bytes of its memory."""

    card: int
    name: str
    health: str
    used: int
    total: int

    @property
    def backend(self) -> Backend | None:
        """The backend of this package for such a chip, or None."""
        name = self.name.removeprefix("Ascend")
        known = (row for row in CHIPS if row.npu_smi_name and name.startswith(row.npu_smi_name))
        return next(known, None)


def parse(table: str) -> list[Chip]:
    """Return the chips, in the order of their device ids."""
    lines = [line.strip() for line in table.splitlines()]
    chips = []
    for line, following in zip(lines, lines[1:], strict=False):
        first, second = FIRST.match(line), SECOND.match(following)
        if first is None or second is None:
            continue
        pairs = [(int(b), int(a)) for a, b in USED_OF_TOTAL.findall(second["usage"])]
        total, used = max(pairs, default=(0, 0))  # a chip with HBM has no other memory
        card, name, health = int(first["card"]), first["name"], first["health"]
        chips.append(Chip(card, name, health, used * MIB, total * MIB))
    return chips
