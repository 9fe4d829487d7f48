"""Data sets in the formats of the Hugging Face Hub, ``hf:DIR``: image folders with metadata, and Parquet, of two columns of images,
an image and its mask. The library ``datasets`` unpacks them once, into the user's cache, as folders like any other of one's own. Only
its readers of these two formats are used, by name: nothing in the folder is run, and nothing is fetched.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.datasets.base import DatasetError
from harness.datasets.readers.own_layouts import MASK_COLUMN, split_of

PREFIX = "hf:"
_UNPACKED_AS = 5
"""Raised where the same files are unpacked to others, so that folders of before are not taken for new ones."""


def plain_folder(folder: Path) -> Path:
    """The folder itself; of ``hf:DIR`` the one that DIR is unpacked to. Raises DatasetError: the library is not installed, or DIR
    is no data set of images that it reads."""
    if not str(folder).startswith(PREFIX):
        return folder
    source = Path(str(folder).removeprefix(PREFIX)).expanduser()
    if not source.is_dir():
        raise DatasetError(f"{PREFIX}{source}: there is no such folder; give the folder of a data set of the Hub")
    spec = find_spec("datasets")
    if spec is None or spec.origin is None:  # our own folder of that name is no package
        raise DatasetError(f"{PREFIX}{source} is read by Hugging Face's datasets: pip install 'datasets>=4'")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam-peft-harness" / "hf"
    digest = hashlib.sha256(f"{_UNPACKED_AS} {source.resolve()}".encode())
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        status = path.stat()
        digest.update(f"{path.relative_to(source)} {status.st_size} {status.st_mtime_ns}\n".encode())
    out = base / f"{source.resolve().name}-{digest.hexdigest()[:16]}"
    if not out.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base, prefix=".") as new:
            try:
                _unpack(source, Path(new) / "set", Path(new) / "cache")
                (Path(new) / "set").rename(out)
            except OSError as error:
                if not out.is_dir():  # another process was first
                    raise DatasetError(f"{PREFIX}{source} cannot be unpacked to {out}: {error}") from error
    return out


def _unpack(source: Path, out: Path, cache: Path) -> None:
    datasets: Any = import_module("datasets")  # by name: a plain import means our own folder to a type checker
    datasets.disable_progress_bars()
    kind = "parquet" if any(source.rglob("*.parquet")) else "imagefolder"
    try:
        loaded = datasets.load_dataset(kind, data_dir=str(source), cache_dir=str(cache))
    except Exception as error:  # whatever the library makes of a folder that is none
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DatasetError(f"{PREFIX}{source} is no image folder and no Parquet of images: {reason}") from error
    splits = [split_of(name) for name in loaded]
    if "train" not in splits or None in splits or len(set(splits)) < len(splits):
        raise DatasetError(f"{PREFIX}{source} has the splits {', '.join(loaded)}; call them train, validation and test")
    for name, table in loaded.items():
        _write(
            table, out / str(split_of(name)) if len(loaded) > 1 else out, where=f"the {name} split of {PREFIX}{source}"
        )
    if (source / "classes.txt").is_file():
        shutil.copyfile(source / "classes.txt", out / "classes.txt")


def _write(table: Any, out: Path, *, where: str) -> None:
    datasets: Any = import_module("datasets")
    columns = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 2:
        raise DatasetError(
            f"{where} has the columns {', '.join(table.features)}; two of images are an image and its mask"
        )
    columns = columns[::-1] if [name for name in columns if MASK_COLUMN.search(name)] == columns[:1] else columns
    for column in columns:
        table = table.cast_column(column, datasets.Image(decode=False))
        if absent := sum(cell is None for cell in table[column]):
            raise DatasetError(f"{absent} of {len(table)} rows of {where} have no {column}; remove or complete them")
    stems = [re.sub(r"[^\w.-]+", "_", Path(cell["path"] or "").stem) for cell in table[columns[0]]]
    alone = all(stems) and len(set(stems)) == len(stems)
    for number, row in enumerate(table):
        for folder, column in zip(("images", "masks"), columns, strict=True):
            data = row[column]["bytes"] if row[column]["bytes"] is not None else Path(row[column]["path"]).read_bytes()
            (out / folder).mkdir(parents=True, exist_ok=True)
            # opened by content, whatever the name says
            (out / folder / f"{stems[number] if alone else f'{number:06d}'}.png").write_bytes(data)
