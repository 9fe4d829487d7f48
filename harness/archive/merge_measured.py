"""What was measured on trained models when results folders come together: it goes with the record of the very model.

Evidence and forgetting lie in folders of their own under the key of the run, and say nothing of the record that the model
belongs to. Two folders may have trained the run each, so that the same key means two models.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.archive.evidence import load_evidence
from harness.archive.forgetting import load_forgetting
from harness.files import write_atomically

MEASURED: Mapping[str, Callable[[Path], object]] = {"evidence": load_evidence, "forgetting": load_forgetting}
"""Folder -> what reads a file of it."""


def merge_measured(
    sources: Sequence[Path],
    destination: Path,
    *,
    same_model: Callable[[Path, str], bool | None],
    skipped: dict[Path, str],
) -> int:
    """Copy what was measured to where the records are; of two files that differ the destination's stays.

    Args:
        same_model: whether the record of a source under a key is the one that stands below the destination; None where
            none stands there.
        skipped: is told which files are left out, and why.

    Returns:
        How many files are new.
    """
    added = 0
    for folder, root in [(folder, root) for folder in MEASURED for root in sources]:
        for path in sorted((root / folder).glob("*.json")):
            target = destination / folder / path.name
            try:
                measured, content = MEASURED[folder](path), path.read_bytes()
            except ValueError as error:
                skipped[path] = str(error)
                continue
            same = same_model(root, path.stem)
            if same is None:
                continue
            if not same:
                skipped[path] = f"the record of this run that stands below {destination} is not that of {root}"
            elif not target.is_file():
                write_atomically(target, content)
                added += 1
            elif target.read_bytes() != content and not _holds(target, measured, load=MEASURED[folder]):
                skipped[path] = f"{target} is other {folder} of this run; delete one of the two"
    return added


def set_measured_aside(destination: Path, key: str, *, apart: str, skipped: dict[Path, str]) -> None:
    """Move what was measured on the model of a record that another one displaces.

    Args:
        apart: name of the folder for it, inside that of its kind.
        skipped: is told what was moved.
    """
    for folder in MEASURED:
        path = destination / folder / f"{key}.json"
        if not path.is_file():
            continue
        aside = path.parent / apart / f"{key}.{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.json"
        aside.parent.mkdir(exist_ok=True)
        os.replace(path, aside)
        skipped[path] = f"another record stands under its key now; it is kept apart as {aside}"


def _holds(path: Path, measured: object, *, load: Callable[[Path], object]) -> bool:
    """Whether a file says the same; layouts may differ."""
    try:
        return load(path) == measured
    except ValueError:
        return False
