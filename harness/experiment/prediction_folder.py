"""The folder that predictions go to: which model fills it, and which image each of them is of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.system.errors import UsageError, os_reason
from harness.system.files import read_regular, write_atomically

NOTE = "predictions.json"
"""Beside the predictions: which model made them, and of which files."""

LARGEST_NOTE = 1 << 28
"""Bytes; an image takes about 150 of them."""

Origin = tuple[str, int, int]
"""Path without links, bytes, and the time of the last change in nanoseconds: another file or content has another."""


@dataclass(frozen=True, kw_only=True)
class PredictionFolder:
    """What a folder's note says.

    Args:
        out: the folder.
        model: what tells models apart.
        images: name of a prediction -> the file that it is of; without those of notes older than this.
        claimed: whether this model has begun to fill it; otherwise it is empty or new.
    """

    out: Path
    model: Mapping[str, str | None]
    images: Mapping[str, Origin]
    claimed: bool

    @classmethod
    def open(cls, out: Path, model: Mapping[str, str | None]) -> PredictionFolder:
        """Read the note there is.

        Raises:
            UsageError: the folder holds anything else, or cannot be read.
        """
        note = out / NOTE
        try:
            if note.is_file():
                found, images = _parsed(read_regular(note, largest=LARGEST_NOTE))
                if found != model:
                    raise UsageError(
                        f"--out {out} holds the predictions of another model or merge; choose another folder"
                    )
                return cls(out=out, model=model, images=images, claimed=True)
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise UsageError(f"--out {out} exists and holds no predictions; choose a folder that is empty or new")
        except UsageError:
            raise
        except OSError as error:
            raise UsageError(f"--out {out} cannot be read: {os_reason(error)}") from error
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise UsageError(f"{note} is damaged; choose another folder") from error
        return cls(out=out, model=model, images={}, claimed=False)

    def is_of(self, name: str, image: Path) -> bool:
        """Whether the prediction of that name is of this file as it is now. Of an older note nobody knows."""
        return self.images.get(name) == origin(image)

    def require_same_file(self, name: str, image: Path) -> None:
        """Refuse to put the prediction of one file in the place of another's.

        Raises:
            UsageError: the prediction there is of another file.
        """
        known = self.images.get(name)
        if known is not None and known[0] != os.path.realpath(image):
            raise UsageError(
                f"--out {self.out} holds the prediction of {known[0]}, not of {image}, under one name; "
                "choose another folder"
            )

    def note(self, images: Mapping[str, Path]) -> None:
        """Write down which model fills the folder, and which files further predictions are of.

        Raises:
            UsageError: it cannot be written.
        """
        known = {**self.images, **{name: origin(image) for name, image in images.items()}}
        try:
            write_atomically(self.out / NOTE, json.dumps({**self.model, "images": known}, indent=1) + "\n")
        except OSError as error:
            raise UsageError(f"--out {self.out} cannot be written: {os_reason(error)}") from error


def origin(image: Path) -> Origin:
    """What tells a file from others and from itself after a change.

    Raises:
        UsageError: it is gone.
    """
    try:
        found = os.stat(image)
    except OSError as error:
        raise UsageError(f"--images: {image} cannot be read: {os_reason(error)}") from error
    return os.path.realpath(image), found.st_size, found.st_mtime_ns


def _parsed(text: bytes) -> tuple[dict[str, Any], dict[str, Origin]]:
    """The model, and the files by name.

    Raises:
        KeyError, TypeError, ValueError, RecursionError: it is no note.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(images := content.pop("images", {}), dict):
        raise TypeError("no note")
    if not all(isinstance(one, list) and list(map(type, one)) == [str, int, int] for one in images.values()):
        raise TypeError("no files")
    return content, {name: (path, size, changed) for name, (path, size, changed) in images.items()}
