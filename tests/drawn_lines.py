"""Change drawn lines of the packages one by one, and see whether a test notices: ``python tests/drawn_lines.py OUT.csv`` in a clean clone.

Lines and changes are drawn with a fixed seed, the same number from each room; the changes are those of tired hands: a comparison or a
sign turned, a condition lost, two arguments swapped, a keyword forgotten. A change is noticed if a test of its room fails; ``--tests``
names other tests, for those that none noticed. OUT.csv has a line a change and is continued where it stands.
"""

from __future__ import annotations

import argparse
import ast
import copy
import csv
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOMS = {
    "methods": "tests/methods", "datasets": "tests/datasets", "harness/evaluation": "tests/harness/evaluation",
    "harness/training": "tests/harness/training", "harness/planning": "tests/harness/planning",
    "harness/dispatch": "tests/harness/dispatch", "harness/comparison": "tests/harness/comparison",
    "harness/report": "tests/harness/report", "harness/experiment": "tests/harness/experiment",
}  # fmt: skip
TURNED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv,
}  # fmt: skip
OTHER = {"min": "max", "max": "min", "any": "all", "all": "any"}
COLUMNS = ("number", "file", "line", "before", "after", "verdict", "noticed by")


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Every way in which this node may be changed."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in TURNED:
        yield _with(node, ops=[TURNED[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in TURNED and not _text(node):
        yield _with(node, op=TURNED[type(node.op)]())
    if isinstance(node, ast.BoolOp):
        yield node.values[0]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    if isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int):
            yield ast.Constant(node.value + 1)
        elif isinstance(node.value, float):
            yield ast.Constant(2 * node.value)
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in OTHER:
            yield _with(node, func=ast.Name(OTHER[node.func.id]))
        if len(node.args) > 1 and not any(isinstance(each, ast.Starred) for each in node.args):
            yield _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
        if node.keywords and node.keywords[-1].arg != "strict":  # lengths are equal already
            yield _with(node, keywords=node.keywords[:-1])


def _text(node: ast.AST) -> bool:
    return any(isinstance(each, ast.JoinedStr | ast.Constant) and not isinstance(getattr(each, "value", None), int | float)
               for each in ast.walk(node))  # fmt: skip


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def candidates(tree: ast.Module) -> dict[int, list[tuple[ast.expr, ast.AST]]]:
    """Line -> (node, changed node), in functions; raised errors, annotations and defaults of signatures left out."""
    found: dict[int, list[tuple[ast.expr, ast.AST]]] = {}

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Raise | ast.AnnAssign | ast.arguments | ast.Assert | ast.JoinedStr):
            return
        if isinstance(node, ast.expr):
            for changed in changes(node):
                if node.lineno == node.end_lineno:
                    found.setdefault(node.lineno, []).append((node, changed))
        for child in ast.iter_child_nodes(node):
            visit(child)

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for statement in node.body:
                visit(statement)
    return {line: list({ast.unparse(b): (a, b) for a, b in pairs}.values()) for line, pairs in found.items()}


def drawn(seed: int, count: int) -> list[tuple[Path, int, str, str]]:
    """(file, line, its text, the changed text), ``count`` of them, from each room as many."""
    generator = random.Random(seed)
    chosen: list[tuple[Path, int, str, str]] = []
    for number in range(count):
        room = list(ROOMS)[number % len(ROOMS)]
        files = sorted(Path(room).rglob("*.py"))
        lines = [(file, line) for file in files for line in sorted(candidates(ast.parse(file.read_text("utf-8"))))]
        while True:
            file, line = generator.choice(lines)
            node, changed = generator.choice(candidates(ast.parse(file.read_text("utf-8")))[line])
            before = file.read_text("utf-8").splitlines()[line - 1]
            start, end = (len(before.encode()[:at].decode()) for at in (node.col_offset, node.end_col_offset or 0))
            after = f"{before[:start]}({ast.unparse(changed)}){before[end:]}"
            if (file, line) not in [(f, n) for f, n, *_ in chosen] and _compiles(file, line, after):
                chosen.append((file, line, before, after))
                break
    return chosen


def _replaced(file: Path, line: int, text: str) -> str:
    lines = file.read_text("utf-8").splitlines()
    return "\n".join([*lines[: line - 1], text, *lines[line:], ""])


def _compiles(file: Path, line: int, text: str) -> bool:
    try:
        compile(_replaced(file, line, text), str(file), "exec")
    except SyntaxError:
        return False
    return True


def noticed(tests: list[str], *, seconds: int) -> str:
    """The first test that fails; empty where all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "(no end)"
    failures = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "" if run.returncode == 0 else (failures or [f"exit {run.returncode}"])[0].split(" - ")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=60)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument(
        "--tests", nargs="*", default=[], help="these tests instead of the room's, for changes that none noticed"
    )
    parser.add_argument("--seconds", type=int, default=900, help="a change that takes longer is noticed")
    options = parser.parse_args()
    done = list(csv.DictReader(options.out.open(encoding="utf-8"))) if options.out.is_file() else []
    known = {int(row["number"]): row for row in done if row["verdict"] == "noticed" or not options.tests}
    for number, (file, line, before, after) in enumerate(drawn(options.seed, options.count), start=1):
        if number not in known:
            room = next(room for room in ROOMS if file.is_relative_to(room))
            original = file.read_text("utf-8")
            try:
                file.write_text(_replaced(file, line, after), "utf-8")
                named = sorted(map(str, Path(ROOMS[room]).rglob(f"test_*{file.stem}*.py")))  # these first
                by = noticed(options.tests or [*named, ROOMS[room]], seconds=options.seconds)
            finally:
                file.write_text(original, "utf-8")
            row = (
                str(number),
                str(file),
                str(line),
                before.strip(),
                after.strip(),
                "noticed" if by else "not noticed",
                by,
            )
            known[number] = dict(zip(COLUMNS, row, strict=True))
        print(*list(known[number].values()), sep=" | ", flush=True)
        with options.out.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(known[each] for each in sorted(known))


if __name__ == "__main__":
    main()
