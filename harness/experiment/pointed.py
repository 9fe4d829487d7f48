"""Boxes and points that users give for their own images, read and checked. Free of torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.datasets.base import DatasetError
from harness.datasets.readers.layouts import read_csv
from harness.datasets.readers.opening import upright_size
from harness.system.errors import UsageError, shortened
from harness.system.files import bounded_text

_MOST = 256
"""Most objects of one image; each is decoded by itself, and its mask is kept until all are written."""
_LARGEST = 1 << 28
"""Most bytes of a file of prompts."""
COLUMNS = ("x0", "y0", "x1", "y1")

Box = tuple[float, float, float, float]
Point = tuple[float, float, int]


class Pointed(NamedTuple):
    """One object, in pixels of its image from the upper left.

    Args:
        box: left, top, right, bottom; None where only points are given.
        points: x, y, and 1 on the object or 0 next to it.
    """

    box: Box | None = None
    points: tuple[Point, ...] = ()


def given_on_command_line(boxes: Sequence[str], points: Sequence[str]) -> tuple[Pointed, ...]:
    """The objects of ``--box`` and ``--point``: one for each box, or one of all points and at most one box.

    Raises:
        UsageError: malformed, or points with several boxes.
    """
    read = [_box(text.split(","), f"--box {text}") for text in boxes]
    on = tuple(_point(text.split(","), f"--point {text}") for text in points)
    if not on:
        return tuple(Pointed(box=box) for box in read)
    if len(read) > 1:
        raise UsageError(
            "--point belongs to one object, and there are several --box; give all objects with --prompts FILE"
        )
    return (Pointed(box=read[0] if read else None, points=on),)


def read_prompts(path: Path, images: Sequence[Path]) -> dict[Path, tuple[Pointed, ...]]:
    """The objects of every image, from a CSV with the columns image, x0, y0, x1, y1 and points (``x,y x,y,0``), or from JSON: a list of
    objects or one per line, with ``image``, ``box`` and ``points``. Names may begin with their folders.

    Raises:
        UsageError: unreadable, malformed, an image that is not among ``images``, or one of them without a line.
    """
    where = f"--prompts {path}"
    rows = _json(path, where) if path.suffix.lower() in (".json", ".jsonl") else _csv(path, where)
    by_name = {image.name: image for image in images}
    found: dict[Path, list[Pointed]] = {image: [] for image in images}
    for number, each in enumerate(rows, start=1):
        here = f"{where}: object {number}"
        name, pointed = _object(each, here)
        parts = Path(os.path.normpath(name)).parts
        image = by_name.get(parts[-1])
        if image is None or Path(os.path.abspath(image)).parts[-len(parts) :] != parts:
            raise UsageError(f"{here} belongs to {shortened(name)}, which --images does not name")
        found[image].append(pointed)
    if without := [image for image, objects in found.items() if not objects]:
        more = f" and {len(without) - 1} more images" if len(without) > 1 else ""
        raise UsageError(f"{where} has no object of {without[0]}{more}; leave these out of --images")
    return {image: tuple(objects) for image, objects in found.items()}


def require_on_images(prompts: Mapping[Path, Sequence[Pointed]]) -> None:
    """Raises UsageError: a box or a point beyond its image, or too many objects of one. Raises DatasetError: an unreadable image."""
    for image, objects in prompts.items():
        if len(objects) > _MOST:
            raise UsageError(f"{image} has {len(objects)} objects; give at most {_MOST} per image")
        width, height = upright_size(image)
        for each in objects:
            corners = (each.box[:2], each.box[2:]) if each.box else ()
            for x, y in (*corners, *(point[:2] for point in each.points)):
                if not (0 <= x <= width and 0 <= y <= height):
                    raise UsageError(f"{x:g},{y:g} is not on {image} of {width} x {height} pixels; end at its edge")


def _csv(path: Path, where: str) -> list[dict[str, Any]]:
    """The rows as objects that `_json` takes."""
    try:
        header, *rows = read_csv(path) or [[]]
    except DatasetError as error:
        raise UsageError(f"{where}: {error}") from error
    unknown = [name for name in header if name not in ("image", *COLUMNS, "points")]
    if "image" not in header or unknown or 0 < len(set(COLUMNS) & set(header)) < len(COLUMNS):
        raise UsageError(
            f"{where}: give the columns image,x0,y0,x1,y1 (and points, as 'x,y x,y,0'); its header is {header}"
        )
    objects = []
    for row in rows:
        cells = dict(zip(header, row, strict=False))
        corners = [cells.get(name, "") for name in COLUMNS]
        points = [text.split(",") for text in cells.get("points", "").split()]
        objects.append({"image": cells["image"], "box": corners if any(corners) else None, "points": points})
    return objects


def _json(path: Path, where: str) -> list[Any]:
    text = bounded_text(path, where=where, most=_LARGEST)
    try:
        lines = [line for line in text.splitlines() if line.strip()]
        return list(json.loads(text) if text.lstrip().startswith("[") else map(json.loads, lines))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is neither a JSON list of objects nor one object per line ({error})") from error


def _object(given: Any, where: str) -> tuple[str, Pointed]:
    """The name of the image, and the object in it."""
    known = isinstance(given, dict) and not given.keys() - {"image", "box", "points"}
    if not known or not isinstance(given.get("image"), str) or not isinstance(given.get("points") or [], list):
        raise UsageError(f'{where}: give {{"image": NAME, "box": [x0, y0, x1, y1], "points": [[x, y, 1]]}}')
    box, points = given.get("box"), given.get("points") or ()
    if box is None and not points:
        raise UsageError(f"{where} has neither box nor points")
    on = tuple(_point(point, where) for point in points)
    return given["image"], Pointed(box=None if box is None else _box(box, where), points=on)


def _box(values: Any, where: str) -> Box:
    numbers = _numbers(values)
    if len(numbers) != 4 or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]) or max(numbers) <= 1:
        raise UsageError(f"{where}: a box is left,top,right,bottom in pixels, not shares, left and top the smaller")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _point(values: Any, where: str) -> Point:
    x, y, label = (*numbers, 1.0)[:3] if len(numbers := _numbers(values)) in (2, 3) else (0.0, 0.0, -1.0)
    if label not in (0, 1) or (0 < x < 1 and 0 < y < 1):
        raise UsageError(f"{where}: a point is x,y in pixels, not shares, followed by 0 where it is not on the object")
    return x, y, int(label)


def _numbers(values: Any) -> tuple[float, ...]:
    """The numbers; empty where ``values`` is not a list of finite numbers or of their texts."""
    try:
        numbers = tuple(map(float, values)) if isinstance(values, list) else ()
    except (ValueError, TypeError, OverflowError):
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()
