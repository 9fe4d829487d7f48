"""Data sets in the formats of the Hugging Face Hub, ``hf:DIR``: image folders with metadata, and Parquet, read by the library
``datasets`` where it is installed. They are unpacked once, into the user's cache, as folders like any other of one's own.

Two columns of images are an image and its mask; one, with a column of class labels, is an image and its class. Only the library's
readers of these two formats are used, by name: nothing that lies in the folder is run, and nothing is fetched.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.datasets.base import DatasetError
from harness.datasets.reading.own_layouts import MASK_COLUMN, SPLITS, split_of

PREFIX = "hf:"
_PLAIN = re.compile(r"[^\w.-]+")
_UNPACKED_AS = 3
"""Raised where the same files are unpacked to others, so that folders of before are not taken for new ones."""
LEFT_OUT = ".splits-left-out"
"""Beside what is unpacked: the names of splits that are neither of training nor of validation nor of test, or a second of one."""


def plain_folder(folder: Path) -> Path:
    """The folder itself; of ``hf:DIR`` the one that DIR is unpacked to. Raises DatasetError: the library is not installed, or DIR
    is no data set of images that it reads."""
    text = str(folder)
    if not text.startswith(PREFIX):
        return folder
    source = Path(text.removeprefix(PREFIX)).expanduser()
    if not source.is_dir():
        raise DatasetError(f"{PREFIX}{source}: there is no such folder; give one that a data set of the Hub lies in")
    spec = find_spec("datasets")
    if spec is None or spec.origin is None:  # our own folder of that name is no package
        raise DatasetError(f"{PREFIX}{source} is read by Hugging Face's datasets: pip install 'datasets>=4'")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam-peft-harness" / "hf"
    out = base / f"{source.resolve().name}-{_fingerprint(source)}"
    if not out.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        new = base / f".{out.name}.{secrets.token_hex(8)}"
        try:
            _unpack(source, new)
            new.rename(out)
        except OSError as error:
            if not out.is_dir():  # another process was first
                raise DatasetError(
                    f"{PREFIX}{source} cannot be unpacked to {out}: {error.strerror or error}"
                ) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return out


def _fingerprint(source: Path) -> str:
    """A hash of the names, sizes and times of its files."""
    digest = hashlib.sha256(f"{_UNPACKED_AS} {source.resolve()}".encode())
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        status = path.stat()
        digest.update(f"{path.relative_to(source)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _library() -> Any:
    """Hugging Face's library, imported by name: a plain import of `datasets` means our own folder to a type checker."""
    return import_module("datasets")


def _unpack(source: Path, out: Path) -> None:
    datasets = _library()
    datasets.disable_progress_bars()
    parquet = any(source.rglob("*.parquet"))
    with tempfile.TemporaryDirectory() as cache:
        try:
            loaded: Any = datasets.load_dataset(
                "parquet" if parquet else "imagefolder", data_dir=str(source), cache_dir=cache
            )
        except Exception as error:  # whatever the library makes of a folder that is none
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DatasetError(f"{PREFIX}{source} is no image folder and no Parquet of images: {reason}") from error
        called = _by_split(loaded)
        known = {split: loaded[name] for split, name in called.items()}
        if "train" not in known:
            raise DatasetError(f"{PREFIX}{source} has the splits {', '.join(loaded)}, and none is called train")
        others = ", ".join(name for name in loaded if name not in called.values())
        if others and "test" not in known:
            raise DatasetError(
                f"{PREFIX}{source} has the splits {', '.join(loaded)}, and none is called test; call the files of one test, or move "
                f"those of {others} away"
            )
        for split, table in known.items():
            _write(table, out / split if len(known) > 1 else out, where=f"the {split} split of {PREFIX}{source}")
        if others:
            (out / LEFT_OUT).write_text(others, encoding="utf-8")
    if (source / "classes.txt").is_file():
        shutil.copyfile(source / "classes.txt", out / "classes.txt")


def _by_split(names: Iterable[str]) -> dict[str, str]:
    """Split -> what it is called; of several names its very own, or else the first."""
    called: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name not in SPLITS):
        if (split := split_of(name)) is not None:
            called.setdefault(split, name)
    return called


def _write(table: Any, out: Path, *, where: str) -> None:
    datasets = _library()
    images = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(images) == 2:
        masks = [name for name in images if MASK_COLUMN.search(name)]
        image, mask = reversed(images) if masks == images[:1] else images
        folders: tuple[str, ...] = ("images", "masks")
        columns: tuple[str, ...] = (image, mask)
        of_class: list[str] = []
    elif len(images) == 1 and labels:
        folders, columns = (), (images[0],)
        of_class = _class_folders(table.features[labels[0]].names, where)
    else:
        raise DatasetError(
            f"{where} has the columns {', '.join(table.features)}; two of images (image and mask), or one and a class "
            "label, are what can be read"
        )
    for column in columns:
        table = table.cast_column(column, datasets.Image(decode=False))
        _require_all(column, [cell is not None for cell in table[column]], where)
    if not folders:
        _require_all(labels[0], [label is not None and label >= 0 for label in table[labels[0]]], where)
    for name, row in zip(_names(table, columns[0]), table, strict=True):
        kinds = folders or (of_class[row[labels[0]]],)
        for folder, column in zip(kinds, columns, strict=True):
            data, ending = _file(row[column])
            place = out / folder / f"{name}{ending}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)


def _require_all(column: str, given: Sequence[bool], where: str) -> None:
    """Raises DatasetError: some rows have nothing in ``column``."""
    if not all(given):
        raise DatasetError(
            f"{len(given) - sum(given)} of {len(given)} rows of {where} have no {column}; remove these rows, or complete them"
        )


def _class_folders(names: Sequence[str], where: str) -> list[str]:
    """A folder's name a class. Raises DatasetError: two classes would share one, or a name has no letter and no digit."""
    folders: dict[str, str] = {}
    for name in names:
        folder = _PLAIN.sub("_", name)
        if folder.startswith((".", "__")):  # such folders are passed over
            folder = folder.lstrip("._")
        if not folder:
            raise DatasetError(
                f"{where}: the class {name!r} has no letter and no digit to name its folder by; rename it"
            )
        if folder in folders:
            raise DatasetError(
                f"{where}: the classes {folders[folder]!r} and {name!r} differ in no letter and no digit, by which folders are named; "
                "rename one of them"
            )
        folders[folder] = name
    return list(folders)


def _names(table: Any, column: str) -> Iterator[str]:
    """A name an image: that of its file where all have one of their own, else its number."""
    stems = [_PLAIN.sub("_", Path(row["path"] or "").stem) for row in table[column]]
    alone = all(stems) and len(set(stems)) == len(stems)
    return (stem if alone else f"{number:06d}" for number, stem in enumerate(stems))


def _file(cell: Any) -> tuple[bytes, str]:
    """The bytes of an image and the ending of its format."""
    data = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
    starts = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
    ending = next((ending for start, ending in starts.items() if data.startswith(start)), ".tif")
    return data, ending
