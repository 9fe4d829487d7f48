"""Bind older records to the file that they were made with: the whole hash of a checkpoint, noted beside its short one."""

from __future__ import annotations

import json
from pathlib import Path

from harness.archive.checkpoints import FILE, noted
from harness.archive.store import RecordStore
from harness.errors import UsageError
from harness.files import write_atomically
from harness.models.fingerprints import fingerprint, short_fingerprint


def verify_checkpoint(file: Path, root: Path) -> str:
    """Hash all of ``file``, note the hash below ``root``, and say in a line what was noted for how many records.

    Raises:
        UsageError: no record has the file's short fingerprint, another file is noted under it, or something cannot be
            read or written.
    """
    whole, short = fingerprint(file), short_fingerprint(file)
    path, notes = root / FILE, noted(root)
    count = sum(record.run.checkpoint == short for record in RecordStore(root))
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
