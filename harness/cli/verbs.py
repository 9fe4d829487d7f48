"""Every verb by its name. A verb is a module with ``parser()`` and ``main()`` whose docstring begins with what it does."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from harness.cli.command import plain

VERBS = {
    "run": "harness.run",
    "status": "harness.cli.status",
    "show": "harness.cli.show",
    "evidence": "harness.cli.evidence",
    "forgetting": "harness.cli.forgetting",
    "tables": "harness.cli.tables",
    "figures": "harness.cli.figures",
    "report": "harness.cli.report",
    "why": "harness.cli.why",
    "claims": "harness.cli.claims",
    "readings": "harness.cli.readings",
    "cost": "harness.cli.cost",
    "export": "harness.cli.export",
    "predict": "harness.cli.predict",
    "metrics": "harness.cli.metrics",
    "doctor": "harness.cli.doctor",
    "settings": "harness.cli.settings",
    "datasets": "harness.cli.datasets",
    "protocols": "harness.cli.protocols",
    "records": "harness.cli.records",
    "paper": "harness.cli.paper",
    "completion": "harness.cli.completion",
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
