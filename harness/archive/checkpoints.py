"""Which file stands behind a short fingerprint: ``ROOT/checkpoints.json``, short fingerprint -> fingerprint of every byte.

Older records name their checkpoint by its size and its first and last MiB, which other files may share. They stay as
they are; an entry here says that somebody held the file that they were made with and hashed all of it
(``sam-peft records verify-checkpoint FILE ROOT``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from harness.check import from_json
from harness.models.fingerprints import fingerprint, short_fingerprint
from harness.system.errors import UsageError
from harness.system.files import read_regular, write_atomically

FILE = "checkpoints.json"
_LARGEST = 1 << 20
_SHORT, _WHOLE = re.compile(r"[0-9a-f]{16}"), re.compile(r"sha256-[0-9a-f]{64}")


def noted(root: Path) -> dict[str, str]:
    """Short fingerprint -> whole one, as noted below a results folder. Raises UsageError: the file is damaged."""
    try:
        return read_notes(root)
    except ValueError as error:
        raise UsageError(
            f"{root / FILE} cannot be read ({error}); move it away and note the checkpoints again with "
            f"sam-peft records verify-checkpoint FILE {root}"
        ) from error


def read_notes(root: Path) -> dict[str, str]:
    """As `noted`, with the reason alone where the file is damaged: a ValueError."""
    try:
        notes = from_json(dict[str, str], read_regular(root / FILE, largest=_LARGEST))
    except ValueError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise
    if not all(_SHORT.fullmatch(short) and _WHOLE.fullmatch(whole) for short, whole in notes.items()):
        raise ValueError("not a mapping of short fingerprints to sha256-… ones")
    return notes


def verify_checkpoint(file: Path, root: Path, *, used: Iterable[str]) -> str:
    """Hash all of ``file``, note the hash below ``root``, and say in a line what was noted for how many records.

    Args:
        used: the checkpoints of the records below ``root``.

    Raises:
        UsageError: no record has the file's short fingerprint, another file is noted under it, or something cannot be
            read or written.
    """
    whole, short = fingerprint(file), short_fingerprint(file)
    path, notes = root / FILE, noted(root)
    count = sum(checkpoint == short for checkpoint in used)
    if not count:
        raise UsageError(
            f"no record below {root} has the short fingerprint {short} of {file}; there is nothing to note"
        )
    if notes.get(short, whole) != whole:
        raise UsageError(
            f"{path} says that the records with the short fingerprint {short} were made with {notes[short]}, and {file} is "
            f"{whole}: another file with the same size, beginning and end; give the right one"
        )
    if short in notes:
        return f"{path}: {short} is {whole}, as noted before ({count} records)"
    try:
        write_atomically(path, json.dumps({**notes, short: whole}, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
    return f"{path}: {short} is {whole}, noted for {count} records"
