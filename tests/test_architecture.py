# SPDX-License-Identifier: Apache-2.0
"""The floors of the package: a module imports from its own room and from the floors below alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "vllm_glm41v_npu"
FLOORS = (
    {"checkpoint", "family", "backends", "versions", "upstream"},
    {"processing", "decoding", "checks"},
    {"quant", "models", "planning", "offline", "serving", "page"},
    {"cpu", "ascend", "patches"},
    {"doctor", "plugin"},
    {"cli"},
)
"""The rooms of each floor, from the ground up; a file of the package itself is a room too."""

STRANGERS = (
    {"models", "quant"},
    {"cpu", "ascend"},
)
"""Rooms that do not know each other: a backend's row names their classes by path."""

TORCH_FREE = ("checkpoint", "family", "backends", "versions", "plugin")
"""Rooms whose modules load neither torch, transformers nor vLLM when they are imported."""

HEAVY = {"torch", "transformers", "vllm", "vllm_ascend", "torch_npu"}


def modules() -> dict[str, ast.Module]:
    """Dotted name to syntax tree of every module of the package."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


TREES = modules()


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a tree imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in TREES else str(node.module)


def room(module: str) -> str:
    """The room of a module of the package: the second part of its name."""
    return module.split(".")[1] if "." in module else ""


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def inner(module: str) -> set[str]:
    """The package's own modules that `module` imports, without itself and `__version__`'s."""
    names = {name for name in imported(TREES[module]) if name in TREES}
    return names - {module, PACKAGE}


def test_every_room_has_a_floor():
    """Guards against a room that no rule holds for, and a rule for a room that is gone."""
    assert {room(module) for module in TREES} - {""} == set.union(*FLOORS)


def test_nothing_imports_from_above():
    """Guards against a floor that leans on one above it, and rooms that know each other."""
    wrong = []
    for module in TREES:
        for other in inner(module):
            here, there = room(module), room(other)
            strangers = any({here, there} == pair for pair in STRANGERS)
            if here and here != there and (floor(there) > floor(here) or strangers):
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circles():
    """Guards against modules, or rooms, that need each other."""
    TopologicalSorter({module: inner(module) for module in TREES}).prepare()
    rooms: dict[str, set[str]] = {}
    for module in TREES:
        rooms.setdefault(room(module), set()).update(map(room, inner(module)))
    TopologicalSorter({here: there - {here} for here, there in rooms.items()}).prepare()


def test_the_ground_floor_is_light():
    """Guards against facts that load torch: the doctor and the planner read them without it."""
    wrong = []
    for module, tree in TREES.items():
        if room(module) in TORCH_FREE:
            top = {name.split(".")[0] for node in tree.body for name in imported_here(node)}
            wrong += [f"{module} imports {name}" for name in sorted(top & HEAVY)]
    assert not wrong, "\n".join(wrong)


def imported_here(node: ast.stmt) -> Iterator[str]:
    """The modules that a statement at a module's top level imports when it runs."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from imported(node)


def test_ascend_alone_knows_the_npu():
    """Guards against imports of the NPU's packages outside the room for them, and its patches."""
    allowed = {"ascend", "patches", "backends", "doctor"}
    wrong = [
        f"{module} imports {name}"
        for module, tree in TREES.items()
        for name in imported(tree)
        if name.split(".")[0] in {"torch_npu", "vllm_ascend"} and room(module) not in allowed
    ]
    assert not wrong, "\n".join(wrong)
