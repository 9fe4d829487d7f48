"""``python -m harness VERB …``: compare ways to fine-tune SAM with few parameters."""

from __future__ import annotations

import sys
from importlib import import_module

from harness.cli.command import PROGRAM, plain, verb, version
from harness.cli.verbs import GROUPS, VERBS, summaries
from harness.system.errors import UsageError, did_you_mean


def main(argv: list[str] | None = None) -> int:
    """Call the ``main`` of a verb with the words after it; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in VERBS:
        return int(import_module(VERBS[words[0]]).main(words[1:]))
    return without_verb(words)


@verb
def without_verb(argv: list[str] | None = None) -> int:
    words = argv or []
    if words and words[0] == "--version":
        print(version())
        return 0
    if words and words[0] not in ("-h", "--help"):
        raise UsageError(f"unknown verb {words[0]!r}{did_you_mean(words[0], VERBS)}")
    print(f"usage: {PROGRAM} VERB …\n\n{plain(__doc__)}")
    summary_of = summaries()
    for group, names in GROUPS.items():
        print(f"\n{group}:")
        for name in names:
            print(f"  {name:{max(map(len, summary_of))}}  {summary_of[name]}")
    print(f"\n{PROGRAM} VERB --help lists the options of a verb.")
    print(f"A KEY of a run may be words of a table: {PROGRAM} show lora kvasir 0.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
