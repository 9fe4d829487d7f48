"""The one exception that a verb turns into a line on stderr and exit code 2."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UsageError(ValueError):
    """Something the user can mend; the message is one line: what is wrong, and what to do."""


class BudgetError(UsageError):
    """Nothing of what is left to do fits into a budget."""


def shown(value: object) -> str:
    """A value in a message: its end left out where it is long."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text)} characters)"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`` (did you mean X?)`` for the nearest choice, or `` (choose from …)``."""
    known = sorted(choices)
    near = difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (choose from {', '.join(known)})"


REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota on this disk is used up",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EROFS: "the disk can only be read",
}


def os_reason(error: OSError) -> str:
    """Why the system refused, in words; a full disk is called that."""
    return REASONS.get(error.errno or 0) or error.strerror or str(error)
