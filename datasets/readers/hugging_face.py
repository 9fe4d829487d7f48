"""``hf:DIR``: Parquet as on the Hugging Face Hub, with two columns of images, an image and its mask. It is unpacked once into the
user's cache, as folders of images and masks; an image folder with ``metadata.csv`` is read in place (`OwnCsv`)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.datasets.base import DatasetError
from harness.datasets.readers.opening import require_file
from harness.datasets.readers.own_layouts import MASK_COLUMN, split_of
from harness.datasets.readers.pairing import is_image

_PREFIX = "hf:"
_IMAGE = re.compile(r"struct<bytes: (large_)?binary, path: (large_)?string>")
"""The type of a column of images."""
_SPECIAL = r"[^\w.-]+"
_MOST_AT_LEAST, _MOST_TIMES = 1 << 28, 100
"""Bytes that a Parquet file decodes to: so many, and so many times its own. Images are compressed already."""


def plain_folder(folder: Path) -> Path:
    """The folder itself, or for ``hf:DIR`` with Parquet in it the folder that this is unpacked to. Raises DatasetError: the
    folder does not exist, it holds several configurations, pyarrow is not installed, or the Parquet has no images with masks."""
    if not str(folder).startswith(_PREFIX):
        return folder
    source = Path(str(folder).removeprefix(_PREFIX)).expanduser().resolve()
    if not source.is_dir():
        raise DatasetError(f"{_PREFIX}{source} does not exist; give the folder of a data set of the Hub")
    if not (tables := sorted(source.rglob("*.parquet"))):
        return source
    _require_one_configuration(source, tables)
    splits = {path: _split(path.relative_to(source)) for path in tables}
    if undecided := [path for path, split in splits.items() if not split and any(splits.values())]:
        raise DatasetError(f"{undecided[0]} names no split, as other files do; call it train, validation or test")
    files = [*tables, *source.glob("classes.txt")]
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns, splits.get(path)) for path in files]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam-peft-harness" / "parquet"
    out = base / f"{source.name}-{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}"
    for path in files:
        require_file(path)
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(
            f"{base} cannot be made ({error.strerror}); set XDG_CACHE_HOME to a folder of yours"
        ) from error
    with FileLock(base / ".lock"):
        shutil.rmtree(new := base / ".unpacking", ignore_errors=True)  # what a process that was killed had begun
        if out.is_dir():
            return out
        for path, split in splits.items():
            name = "_".join(path.relative_to(source).with_suffix("").parts)
            _unpack(path, new / split, name=re.sub(_SPECIAL, "_", name))
        for path in files[len(tables) :]:
            shutil.copyfile(path, new / path.name)
        new.rename(out)
    return out


def _require_one_configuration(source: Path, tables: Sequence[Path]) -> None:
    """Raises DatasetError: the README or the folders have several configurations, which are data sets of their own."""
    card = source / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    header = text.split("\n---", 1)[0] if text.startswith("---") else ""
    names = {name.strip("\"'") for name in re.findall(r"^[-\s]*config_name:\s*(\S.*?)\s*$", header, re.MULTILINE)}
    if len(names) < 2:
        folders = (path.relative_to(source).parent.parts for path in tables)
        names = {"/".join(part for part in parts if not _split(Path(part))) or "." for parts in folders}
    if len(names) > 1:
        raise DatasetError(
            f"{_PREFIX}{source} has the configurations {', '.join(sorted(names))}; give the folder of one, as {_PREFIX}{source}/NAME, "
            "or a folder with the Parquet of one alone"
        )


def _split(path: Path) -> str:
    """The split in a file's name, as in ``train-00000-of-00001.parquet``, or else in its folders', as in ``train/0000.parquet``; empty
    without one. Raises DatasetError: several in one name."""
    for name in reversed(path.parts):
        words = map(split_of, re.split(r"[^a-z]+", name.removesuffix(".parquet").casefold()))
        if len(named := sorted({word for word in words if word})) > 1:
            raise DatasetError(f"{path} names the splits {' and '.join(named)}; rename it")
        if named:
            return named[0]
    return ""


def _unpack(path: Path, out: Path, *, name: str) -> None:
    """The two images of every row, into ``images/`` and ``masks/`` below ``out``, under their own names, or ``name`` and a number."""
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise DatasetError(f"{path} is read by pyarrow, which is not here: pip install pyarrow") from error
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    try:
        _write_rows(parquet.ParquetFile(path), path, out, name)
    except DatasetError:
        raise
    except Exception as error:  # a foreign reader on a damaged file may raise anything
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path} is not a readable Parquet file ({reason}); get it again") from error


def _write_rows(file: Any, path: Path, out: Path, name: str) -> None:
    columns = [field.name for field in file.schema_arrow if _IMAGE.fullmatch(str(field.type))]
    if len(columns) != 2:
        raise DatasetError(f"{path} has {len(columns)} columns of images; two are needed, an image and its mask")
    columns.sort(key=lambda name: MASK_COLUMN.search(name) is not None)
    most = _MOST_AT_LEAST + _MOST_TIMES * path.stat().st_size
    inflates = DatasetError(f"{path} decodes to over {most >> 20} MiB; save images as PNG or JPEG in it, or as files")
    if sum(file.metadata.row_group(at).total_byte_size for at in range(file.metadata.num_row_groups)) > most:
        raise inflates
    # One row at a time, as a few bytes may stand for many rows of one large image.
    for number, row in enumerate(row for batch in file.iter_batches(1, columns=columns) for row in batch.to_pylist()):
        image, mask = ((row[column] or {}).get("bytes") or b"" for column in columns)
        if not image or not mask:
            raise DatasetError(f"row {number} of {path} has no {columns[bool(image)]}; remove or complete it")
        if (most := most - len(image) - len(mask)) < 0:
            raise inflates
        stem = re.sub(_SPECIAL, "_", Path(row[columns[0]]["path"] or "").stem)
        if not is_image(f"{stem}.png") or (out / "images" / f"{stem}.png").exists():
            stem = f"{name}_{number:06d}"
        # files are opened by content, whatever their names say
        (out / "images" / f"{stem}.png").write_bytes(image)
        (out / "masks" / f"{stem}.png").write_bytes(mask)
