"""Names that become parts of paths, from cards, studies, records and the command line: checked where they enter."""

from __future__ import annotations

from harness.system.errors import UsageError, shown

LONGEST = 150
"""Bytes; with a suffix and a temporary file's ending it stays below the 255 that file systems allow."""


def checked_name(name: str, *, what: str) -> str:
    """``name``, if a file of that name lies in the folder that it is put into.

    Args:
        name: of a protocol or a study, for instance.
        what: what the name is of, for the message.

    Raises:
        UsageError: it is empty, leads elsewhere (``../x``), would be hidden, cannot be printed, or is too long.
    """
    if problem := _problem(name):
        raise UsageError(
            f"{what} {shown(name)!r} {problem}, and files are named after it; use letters, digits, - and _"
        )
    return name


def _problem(name: str) -> str:
    if not name.strip():
        return "is empty"
    if "/" in name or "\\" in name:
        return "holds a slash"
    if name.startswith((".", "-")):
        return f"begins with {name[0]!r}"
    if not name.isprintable():
        return "holds a character that cannot be printed"
    if len(name.encode(errors="replace")) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return ""
