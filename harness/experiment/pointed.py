"""Boxes and points that a user gives for his images: read, checked, and given to the network. Free of torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.datasets.base import DatasetError
from harness.datasets.readers.layouts import read_csv
from harness.datasets.readers.opening import upright_size
from harness.system.errors import UsageError, shortened
from harness.system.files import bounded_text

MOST = 256
"""Objects of one image; each is decoded by itself, and its mask is kept until all are written."""
LARGEST = 1 << 28
"""Bytes of a file of prompts."""
COLUMNS = ("x0", "y0", "x1", "y1")

Box = tuple[float, float, float, float]
Point = tuple[float, float, int]


@dataclass(frozen=True, kw_only=True)
class Pointed:
    """One object, in pixels of its image from the upper left.

    Args:
        box: left, top, right, bottom; None where only points are given.
        points: x, y, and 1 on the object or 0 beside it.
    """

    box: Box | None = None
    points: tuple[Point, ...] = ()


def given_on_command_line(boxes: Sequence[str], points: Sequence[str]) -> tuple[Pointed, ...]:
    """The objects of ``--box`` and ``--point``: one a box, or one of all points and at most one box.

    Raises:
        UsageError: malformed, or points with several boxes.
    """
    read = [_box(text, f"--box {text}") for text in boxes]
    on = tuple(_point(text, f"--point {text}") for text in points)
    if not on:
        return tuple(Pointed(box=box) for box in read)
    if len(read) > 1:
        raise UsageError(
            "--point says more of one object, and there are several --box; give each object a line with --prompts FILE"
        )
    return (Pointed(box=read[0] if read else None, points=on),)


def read_prompts(path: Path, images: Sequence[Path]) -> dict[Path, tuple[Pointed, ...]]:
    """The objects of every image, from a CSV with the columns image, x0, y0, x1, y1 and points (``x,y x,y,0``), or from JSON: a list of
    objects or one a line, with ``image``, ``box`` and ``points``. Names may have their folders in front.

    Raises:
        UsageError: unreadable, malformed, an image that is not among ``images``, or one of them without a line.
    """
    where = f"--prompts {path}"
    rows = _json(path, where) if path.suffix.lower() in (".json", ".jsonl") else _csv(path, where)
    by_name: dict[str, list[Path]] = {}
    for image in images:
        by_name.setdefault(image.name, []).append(image)
    found: dict[Path, list[Pointed]] = {image: [] for image in images}
    for number, (name, each) in enumerate(rows, start=1):
        fitting = [image for image in by_name.get(Path(name).name, ()) if _ends_with(image, name)]
        if len(fitting) != 1:
            raise UsageError(f"{where}: object {number} is of {shortened(name)}, which --images does not name")
        found[fitting[0]].append(each)
    if without := [image for image, objects in found.items() if not objects]:
        raise UsageError(
            f"{where} has no object of {without[0]}" + (f" and {len(without) - 1} more images" if len(without) > 1 else "")
            + "; leave these out of --images"
        )  # fmt: skip
    return {image: tuple(objects) for image, objects in found.items()}


def require_on_images(prompts: Mapping[Path, Sequence[Pointed]]) -> None:
    """Raises UsageError: a box or a point beyond its image, or too many objects of one. Raises DatasetError: an unreadable image."""
    for image, objects in prompts.items():
        if len(objects) > MOST:
            raise UsageError(f"{image} has {len(objects)} objects; give at most {MOST} of an image")
        width, height = upright_size(image)
        for each in objects:
            corners = (each.box[:2], each.box[2:]) if each.box else ()
            for x, y in (*corners, *(point[:2] for point in each.points)):
                if not (0 <= x <= width and 0 <= y <= height):
                    raise UsageError(
                        f"{x:g},{y:g} is not on {image}, which has {width} x {height} pixels; cut it off there"
                    )


def _ends_with(image: Path, name: str) -> bool:
    parts = Path(os.path.normpath(name)).parts
    return Path(os.path.abspath(image)).parts[-len(parts) :] == parts


def _csv(path: Path, where: str) -> Iterable[tuple[str, Pointed]]:
    try:
        header, *rows = read_csv(path) or [[]]
    except DatasetError as error:
        raise UsageError(f"{where}: {error}") from error
    unknown = [name for name in header if name not in ("image", *COLUMNS, "points")]
    if "image" not in header or unknown or 0 < len(set(COLUMNS) & set(header)) < len(COLUMNS):
        raise UsageError(
            f"{where}: give the columns image,x0,y0,x1,y1 (and points, as 'x,y x,y,0'); its header is {header}"
        )
    for number, row in enumerate(rows, start=1):
        cells, here = dict(zip(header, row, strict=False)), f"{where}: object {number}"
        corners = [cells.get(name, "") for name in COLUMNS]
        box = _box(",".join(corners), here) if any(corners) else None
        points = tuple(_point(text, here) for text in cells.get("points", "").split())
        yield cells["image"], _pointed(box, points, here)


def _json(path: Path, where: str) -> Iterable[tuple[str, Pointed]]:
    text = bounded_text(path, where=where, most=LARGEST)
    try:
        lines = [line for line in text.splitlines() if line.strip()]
        objects = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: no JSON list of objects, or one a line ({error})") from error
    for number, each in enumerate(objects, start=1):
        here = f"{where}: object {number}"
        if (
            not isinstance(each, dict)
            or each.keys() - {"image", "box", "points"}
            or not isinstance(each.get("image"), str)
        ):
            raise UsageError(f'{here}: give {{"image": NAME, "box": [x0, y0, x1, y1], "points": [[x, y, 1]]}}')
        box, points = each.get("box"), each.get("points") or []
        if not isinstance(points, list):
            raise UsageError(f"{here}: points is no list of [x, y] or [x, y, 0]")
        on = tuple(_point(_joined(point), here) for point in points)
        yield each["image"], _pointed(None if box is None else _box(_joined(box), here), on, here)


def _joined(numbers: Any) -> str:
    return ",".join(map(str, numbers)) if isinstance(numbers, list) else str(numbers)


def _pointed(box: Box | None, points: tuple[Point, ...], where: str) -> Pointed:
    if box is None and not points:
        raise UsageError(f"{where} has neither box nor points")
    return Pointed(box=box, points=points)


def _box(text: str, where: str) -> Box:
    numbers = _numbers(text)
    if len(numbers) != 4 or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise UsageError(f"{where}: a box is left,top,right,bottom in pixels of the image, left and top the smaller")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _point(text: str, where: str) -> Point:
    x, y, label = (*_numbers(text), 1.0)[:3] if len(_numbers(text)) in (2, 3) else (0.0, 0.0, -1.0)
    if label not in (0, 1):
        raise UsageError(
            f"{where}: a point is x,y in pixels of the image, and 0 after them where it is beside the object"
        )
    return x, y, int(label)


def _numbers(text: str) -> tuple[float, ...]:
    """Nothing where ``text`` is no finite numbers with commas."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()
