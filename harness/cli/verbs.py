"""Every verb by its name, in groups. A verb is a module with ``parser()`` and ``main()`` whose docstring begins with what it does."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from harness.cli.command import plain

GROUPS = {
    "use": ("run", "status", "show", "predict", "export", "data"),
    "read": ("report", "tables"),
    "measure": ("cost",),
    "maintain": ("doctor", "settings", "records", "protocols"),
}

VERBS = {name: "harness.run" if name == "run" else f"harness.cli.{name}" for names in GROUPS.values() for name in names}


def summaries() -> dict[str, str]:
    """Verb -> what it does, from the first paragraph of its docstring; no verb is imported for this."""
    by_verb = {}
    for name, module in VERBS.items():
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        documentation = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        by_verb[name] = plain(documentation)
    return by_verb
