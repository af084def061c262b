"""
The rooms of the package and which way their imports point; `python tests/support/layout.py` prints the table.

An import may point to the same room or to one that stands earlier in `ROOMS`, never to a later one.
"""

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


PACKAGE = Path(__file__).parents[2] / "tokforget"
# From the foundation up. "" holds the modules that belong to no room.
ROOMS = (
    "",
    "models",
    "hub",
    "data",
    "compression",
    "service",
    "readers",
    "evaluation",
    "training",
    "cli",
    "integrations",
    "metrics",
)
# The exceptions, each with its reason.
ALLOWED = {
    ("models.forget_model", "hub"): "`push_to_hub` is a method of the model, as in Transformers; imported when used",
    (
        "models.folders",
        "hub",
    ): "an id on the Hub is downloaded; imported when used, so that a local path costs no network library",
    ("models.loading", "hub"): "as `models.folders`",
    ("__init__", "*"): "public names, imported when used",
    ("__main__", "*"): "`python -m tokforget`",
}


class Arrow(NamedTuple):
    """One import statement of one module of the package by another."""

    importer: str
    imported: str
    line: int


def room_of(module: str) -> str:
    """`models.policy` is of `models`, `masking` of the root."""
    head, dot, _ = module.partition(".")
    return head if dot else ""


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Dotted names within the package, without its own."""
    paths = {path: path.relative_to(package).with_suffix("").parts for path in package.rglob("*.py")}
    return {
        ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts): path
        for path, parts in paths.items()
    }


def arrows(package: Path = PACKAGE) -> Iterator[Arrow]:
    """Every import between modules of the package, those inside functions included."""
    known = modules(package)
    for importer, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            targets = set()
            for name in names:
                parts = name.split(".")
                if parts[0] == "tokforget":
                    inner = ".".join(parts[1:])
                    while inner and inner not in known:
                        inner = inner.rpartition(".")[0]
                    targets.add(inner or "__init__")
            yield from (Arrow(importer, target, node.lineno) for target in sorted(targets) if target != importer)


def points_up(arrow: Arrow) -> bool:
    """Whether an import goes to a later room, exceptions aside."""
    here, there = room_of(arrow.importer), room_of(arrow.imported)
    if arrow.imported in ROOMS:  # a room's own `__init__`
        there = arrow.imported
    if (arrow.importer, there) in ALLOWED or (arrow.importer, "*") in ALLOWED:
        return False
    return ROOMS.index(there) > ROOMS.index(here)


def circles(package: Path = PACKAGE) -> list[list[str]]:
    """Modules that import each other at import time, directly or through others; each circle once."""
    known, top = modules(package), defaultdict(set)
    at_import_time = {
        (name, node.lineno)
        for name, path in known.items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    for arrow in arrows(package):
        if (arrow.importer, arrow.line) in at_import_time and arrow.imported != "__init__":
            top[arrow.importer].add(arrow.imported)
    found, done = [], set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(trail[trail.index(module) :])
            return
        if module in done:
            return
        for target in sorted(top[module]):
            walk(target, [*trail, module])
        done.add(module)

    for module in sorted(known):
        walk(module, [])
    return found


def main() -> None:
    count = Counter(room_of(name) if name not in ROOMS else name for name in modules())
    all_arrows = list(arrows())
    between = Counter((room_of(a.importer), room_of(a.imported)) for a in all_arrows)
    print(f"{'room':<14}{'modules':>8}{'imports from other rooms':>26}")
    for room in ROOMS:
        others = sum(n for (here, there), n in between.items() if here == room != there)
        print(f"{room or '(root)':<14}{count[room]:>8}{others:>26}")
    up = [arrow for arrow in all_arrows if points_up(arrow)]
    print(
        f"{len(modules())} modules, {len(all_arrows)} internal imports, {len(up)} of them point up, {len(circles())} circles"
    )
    for arrow in up:
        print(f"  up: {arrow.importer}:{arrow.line} -> {arrow.imported}")
    sys.exit(1 if up else 0)


if __name__ == "__main__":
    main()
