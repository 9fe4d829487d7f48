"""``python -m harness VERB …``: compare ways to fine-tune SAM with few parameters."""

from __future__ import annotations

import sys
from importlib import import_module

from harness.cli.command import PROGRAM, plain, program, verb, version
from harness.cli.verbs import VERBS, summaries
from harness.system.errors import UsageError, did_you_mean


def main(argv: list[str] | None = None) -> int:
    """Hand the words behind the verb to its own ``main``."""
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
    print(f"usage: {program()} VERB …\n\n{plain(__doc__)}\n")
    told = summaries()
    for name, summary in told.items():
        print(f"  {name:{max(map(len, told))}}  {summary}")
    print(
        f"\n{program('VERB')} --help lists the options of one; python -m harness.VERB is the same."
        f"\n{PROGRAM} completion bash prints completions for a shell."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
