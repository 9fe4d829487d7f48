"""The one exception that a verb turns into a line on stderr and exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Something the user can mend; the message is one line: what is wrong, and what to do."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`` (did you mean X?)`` for the nearest choice, or `` (choose from …)``."""
    known = sorted(choices)
    near = difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (choose from {', '.join(known)})"
