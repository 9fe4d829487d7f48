"""Every verb by its name. A verb is a module with ``parser()`` and ``main()`` whose docstring begins with what it does."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from harness.command_line import plain

VERBS = {
    "run": "harness.run",
    "status": "harness.status",
    "show": "harness.show",
    "evidence": "harness.evidence.__main__",
    "forgetting": "harness.forgetting",
    "tables": "harness.tables",
    "figures": "harness.figures",
    "report": "harness.report.__main__",
    "why": "harness.why",
    "claims": "harness.claims",
    "readings": "harness.readings",
    "cost": "harness.cost",
    "export": "harness.export",
    "predict": "harness.predict",
    "metrics": "harness.metrics",
    "doctor": "harness.doctor",
    "settings": "harness.settings.__main__",
    "datasets": "harness.data_sets",
    "protocols": "harness.protocols.__main__",
    "records": "harness.records",
    "paper": "harness.paper",
    "completion": "harness.completion",
}


def summaries() -> dict[str, str]:
    """Verb -> what it does, from the first paragraph of its docstring; no verb is imported for this."""
    found = {}
    for name, module in VERBS.items():
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        documentation = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        found[name] = plain(documentation)
    return found
