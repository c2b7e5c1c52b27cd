"""Draws the house from the code: its rooms on their floors, what each is for, and who imports whom.

    python docs/house.py                      # writes docs/house.svg
    python docs/house.py --check              # exit code 1 if the picture isn't that of the code
    python docs/house.py --figures [FOLDER]   # rooms, arrows, circles, lines, long files and functions of a checkout

Floors are the layers of import-linter's contract in setup.cfg; a room's purpose is the docstring of its package.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import sys
from collections import defaultdict
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH, TOP, ROW, CELL = 1360, 90, 62, 36
PALE, INK, GREY = "#f6f8fa", "#24292f", "#57606a"
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.match_case)


def modules(root: Path) -> dict[str, ast.Module]:
    """Every module of the library by its dotted name."""
    found = {}
    for path in sorted((root / "needle").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """The modules of the library that a module imports anywhere, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known or node.module in known:
                    yield inner if inner in known else node.module


def room(name: str) -> str:
    return ".".join(name.split(".")[:2])


def arrows(tree: dict[str, ast.Module]) -> dict[tuple[str, str], int]:
    """How many imports lead from one room to another."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for name, module in tree.items():
        for other in imports(module, set(tree)):
            if room(name) != room(other) and "needle" not in (name, other):
                found[room(name), room(other)] += 1
    return dict(found)


def floors(root: Path) -> list[list[str]]:
    """The rooms of each floor, the highest first."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    layers = config["importlinter:contract:floors"]["layers"].split("\n")
    return [[part.strip() for part in line.split("|")] for line in layers if line.strip()]


def draw(root: Path) -> str:
    """A row for each room, the highest floor first; a dot in a row for each room that it imports, all to the right of
    the diagonal if every arrow points down."""
    tree, rows = modules(root), floors(root)
    order = [name for rooms in rows for name in rooms]
    found, parts = arrows(tree), []
    left = WIDTH - 30 - CELL * len(order)
    for number, name in enumerate(order):
        x = left + CELL * (number + 0.5)
        parts.append(_text(name.partition(".")[2], x + 5, TOP - 8, 13, INK, f' transform="rotate(-55 {x} {TOP - 8})"'))
        parts.append(f'<path d="M{x} {TOP}V{TOP + ROW * len(order)}" stroke="#d0d7de"/>')
    for floor, rooms in enumerate(rows):
        first = order.index(rooms[0])
        if floor % 2 == 0:
            size = f'width="{WIDTH - 20}" height="{ROW * len(rooms)}"'
            parts.insert(0, f'<rect x="10" y="{TOP + ROW * first}" {size} fill="{PALE}"/>')
    for number, name in enumerate(order):
        y = TOP + ROW * number
        parts.append(f'<path d="M{left} {y + ROW / 2}H{WIDTH - 20}" stroke="#d0d7de"/>')
        parts += _room(root, tree, name, y, left)
        middle = left + CELL * (number + 0.5)
        parts.append(f'<rect x="{middle - 6}" y="{y + ROW / 2 - 6}" width="12" height="12" fill="#8c959f"/>')
        for place, other in enumerate(order):
            if count := found.get((name, other), 0):
                colour = "#0969da" if place > number else "#cf222e"
                parts.append(
                    f'<circle cx="{left + CELL * (place + 0.5)}" cy="{y + ROW / 2}" r="{4 + min(count, 36) ** 0.5:.1f}"'
                    f' fill="{colour}"><title>{name} imports {other} {count} times</title></circle>'
                )
    height = TOP + ROW * len(order) + 40
    said = "A dot: the room of the row imports that of the column, the larger the more. An arrow that points up is red."
    parts.append(_text(said, 20, height - 14, 13, GREY))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _room(root: Path, tree: dict[str, ast.Module], name: str, y: float, width: float) -> list[str]:
    """The name, the purpose and the files of a room."""
    about = (ast.get_docstring(tree[name]) or "").split("\n\n")[0].replace("\n", " ").replace("`", "").rstrip(":")
    folder = root / name.replace(".", "/")
    inner = sorted(
        entry.stem + ("/" if entry.is_dir() else "")
        for entry in (folder.iterdir() if folder.is_dir() else [])
        if (entry.suffix == ".py" and entry.stem != "__init__") or (entry / "__init__.py").is_file()
    )
    out = [_text(f"{name.replace('.', '/')}{'/' if inner else '.py'}", 22, y + 21, 16, INK, ' font-weight="bold"')]
    letters = int((width - 215) / 7)
    lines = [(line, 13, INK) for line in _wrapped(about, letters)[:2]]
    lines += [(line, 12, GREY) for line in _wrapped(", ".join(inner), letters)[: 4 - len(lines)]]
    return out + [_text(text, 200, y + 20 + 15 * n, size, colour) for n, (text, size, colour) in enumerate(lines)]


def _text(text: str, x: float, y: float, size: int, colour: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}"{more}>{escape(text)}</text>'


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def circles(pairs: set[tuple[str, str]]) -> int:
    """How many rooms can be come back to by following arrows."""
    following = defaultdict(set)
    for one, other in pairs:
        following[one].add(other)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for other in following[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    return sum(start in reached(start) for start in list(following))


def complexity(function: ast.AST) -> int:
    """McCabe's number, counting boolean operators."""
    nodes = list(ast.walk(function))
    return (
        1
        + sum(isinstance(n, BRANCHES) for n in nodes)
        + sum(len(n.values) - 1 for n in nodes if isinstance(n, ast.BoolOp))
    )


def figures(root: Path) -> dict[str, str]:
    tree = modules(root)
    found = arrows(tree)
    rows = floors(root)
    level = {name: index for index, rooms in enumerate(rows) for name in rooms}
    lengths = {path: len(path.read_text().splitlines()) for path in (root / "needle").rglob("*.py")}
    functions = [
        n for module in tree.values() for n in ast.walk(module) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = sum((function.end_lineno or 0) - function.lineno + 1 > 60 for function in functions)
    difficult = sum(complexity(function) > 10 for function in functions)
    return {
        "rooms": str(len({room(name) for name in tree} - {"needle"})),
        "layers of the contract": str(len(rows)),
        "arrows between rooms": str(len(found)),
        "upward arrows": str(sum(level.get(b, 99) < level.get(a, 99) for a, b in found)),
        "rooms in a circle": str(circles(set(found))),
        "lines of needle/": f"{sum(lengths.values()):,}",
        "files over 300 lines": str(sum(length > 300 for length in lengths.values())),
        "functions over 60 lines": f"{long} of {len(functions):,}",
        "functions over cyclomatic 10": f"{difficult} ({100 * difficult / len(functions):.1f}%)",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--figures", nargs="?", const=ROOT, type=Path)
    given = parser.parse_args()
    if given.figures:
        print("\n".join(f"{name:30} {value}" for name, value in figures(given.figures).items()))
        return
    picture, target = draw(ROOT), ROOT / "docs" / "house.svg"
    if not given.check:
        target.write_text(picture, encoding="utf-8")
    elif not target.is_file() or target.read_text(encoding="utf-8") != picture:
        sys.exit("docs/house.svg isn't the house any more: python docs/house.py draws it anew")


if __name__ == "__main__":
    main()
