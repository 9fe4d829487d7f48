"""Write the signatures and docstrings of docs/api.md from the source: ``python docs/api.py``. A test keeps them equal."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "api.md"
BLOCK = re.compile(r"(?<=^<!-- api: )(?P<name>[\w.]+) -->\n.*?(?=^<!-- /api -->)", re.M | re.S)
MAX_LINE = 110


def page() -> str:
    """The page with each block written anew. Raises LookupError for a name that its module does not define."""
    return BLOCK.sub(lambda match: f"{match['name']} -->\n{entry(match['name'])}", PAGE.read_text(encoding="utf-8"))


def entry(name: str) -> str:
    """What the page says of one dotted name: its signature, and the first paragraph of its docstring."""
    module, _, attribute = name.rpartition(".")
    path = REPOSITORY / re.sub(r"^harness\.(datasets|methods)\b", r"\1", module).replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == attribute:
            return f"```python\n{_stub(node)}\n```\n{_first_paragraph(ast.get_docstring(node) or '')}\n"
    raise LookupError(f"{path} defines no {attribute}")


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _doc(node: ast.stmt, after: ast.stmt | None) -> str:
    """The docstring of a definition, or the string that stands below an attribute."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return ast.get_docstring(node) or ""
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
        return after.value.value
    return ""


def _first_paragraph(text: str) -> str:
    return " ".join(re.sub(r"``(.+?)``", r"`\1`", text).partition("\n\n")[0].split())


def _stub(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Signature of a function; of a class its public attributes and methods, with a sentence each where one derives from it."""
    if isinstance(node, ast.FunctionDef):
        return _signature(node)
    head = ast.unparse(ast.ClassDef(node.name, node.bases, node.keywords, [ast.Pass()], [], type_params=[]))
    lines, derived = [head.partition("\n")[0]], "(ABC)" in head
    for member, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not (names := _names(member)) or names[0].startswith("_"):
            continue
        sentence = re.split(r"(?<=\w)[.;](?:\s|$)", _first_paragraph(_doc(member, after)))[0].rstrip(".")
        if sentence and derived:
            lines += textwrap.wrap(sentence, MAX_LINE - 6, initial_indent="    # ", subsequent_indent="    # ")
        lines.append(textwrap.indent(_signature(member), "    "))
    return "\n".join(lines)


def _signature(node: ast.stmt) -> str:
    if not isinstance(node, ast.FunctionDef):
        return ast.unparse(node)
    decorators = [f"@{ast.unparse(d)}\n" for d in node.decorator_list if ast.unparse(d) in ("property", "classmethod")]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{''.join(decorators)}def {node.name}({ast.unparse(node.args)}){returns}: ..."
    if len(line) <= MAX_LINE:
        return line
    arguments = textwrap.wrap(ast.unparse(node.args), MAX_LINE - 6, initial_indent="    ", subsequent_indent="    ")
    return "\n".join([f"{''.join(decorators)}def {node.name}(", *arguments, f"){returns}: ..."])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
