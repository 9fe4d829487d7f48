"""Every verb by its name, in groups. A verb is a module with ``parser()`` and ``main()`` whose docstring begins with what it does."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from harness.cli.command import plain
from harness.system.errors import did_you_mean

GROUPS = {
    "use": ("run", "status", "show", "predict", "export", "data"),
    "read": ("report", "tables"),
    "measure": ("cost",),
    "maintain": ("doctor", "settings", "records", "protocols"),
}

VERBS = {name: "harness.run" if name == "run" else f"harness.cli.{name}" for names in GROUPS.values() for name in names}

SYNONYMS = {
    **dict.fromkeys(("train", "fit", "start", "submit", "sweep", "tune", "plan", "demo", "finetune"), "run"),
    **dict.fromkeys(("eval", "evaluate", "test", "score", "metrics"), "data score"),
    **dict.fromkeys(("compare", "diff"), "show --compare"),
    **dict.fromkeys(("info", "log", "view"), "show"),
    **dict.fromkeys(("list", "ls", "ps", "queue", "watch", "jobs", "runs"), "status"),
    "cancel": "run --cancel",
    **dict.fromkeys(("datasets", "benchmarks", "prepare", "download", "sample"), "data"),
    **dict.fromkeys(("infer", "inference", "segment", "classify"), "predict"),
    **dict.fromkeys(("save", "convert", "adapter", "checkpoint"), "export"),
    **dict.fromkeys(("results", "latex", "csv", "leaderboard"), "tables"),
    **dict.fromkeys(("plot", "figures", "chart"), "report --figures"),
    **dict.fromkeys(("benchmark", "profile", "flops", "speed"), "cost"),
    **dict.fromkeys(("methods", "contract"), "doctor"),
    **dict.fromkeys(("config", "init"), "settings"),
    **dict.fromkeys(("card", "cards", "rules"), "protocols"),
    "studies": "run --study list",
}
"""A word that people may type instead of a verb -> what to type."""


def instead_of(word: str) -> str:
    """`` (did you mean X?)`` for a word that is not a verb, from `SYNONYMS`, else the nearest verb."""
    known = SYNONYMS.get(word.strip("-").lower())
    return f" (did you mean {known!r}?)" if known else did_you_mean(word, VERBS)


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
