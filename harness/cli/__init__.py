"""The command line: one thin module a verb, what they share in `command`, their list in `verbs`."""

import sys

if sys.argv[:1] == ["-m"]:  # while `python -m harness.cli.VERB` looks for its module, which would do nothing in silence
    print("error: verbs are run as `sam-peft VERB` or `python -m harness VERB`", file=sys.stderr)
    raise SystemExit(2)
