"""COCO JSON as masks, read in place: polygons and run lengths through pycocotools (the extra ``coco``).

Where objects overlap, the smaller lies on top. A crowd's region is ignored (255) where no object is drawn, as COCO's own
scores do. pycocotools trusts what it is given, down to memory beyond its arrays, so sizes are checked here first.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.datasets.base import IGNORE, DatasetError, Pair
from harness.datasets.reading.layouts import Layout, subfolders
from harness.datasets.reading.opening import MOST_PIXELS
from harness.datasets.reading.pairing import Paired, is_image, name_key

ANY = "any"
"""The word for ``category`` that makes every category foreground."""

_TABLES = re.compile(rb'"(images|annotations|categories)"\s*:')
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """One COCO file, parsed.

    Args:
        names: category id -> name.
        images: ``file_name`` -> (height, width).
        annotations: ``file_name`` -> its annotations, as they stand in the file.
        used: names of the categories that have annotations, in the order of their ids.
    """

    names: Mapping[int, str]
    images: Mapping[str, tuple[int, int]]
    annotations: Mapping[str, Sequence[Mapping[str, Any]]]
    used: tuple[str, ...]


def load(path: Path) -> CocoFile:
    """Parse a COCO file, once while it stays unchanged on disk; DatasetError where it is none."""
    try:
        status = path.stat()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); restore it") from error
    return _load(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _load(path: Path, size: int, changed: int) -> CocoFile:
    if size > _MOST_BYTES:
        raise DatasetError(f"{path} has {size} bytes, over 1 GiB are refused; split it, or convert it to mask images")
    try:
        data = json.loads(path.read_bytes())
        names = {_id(category["id"]): str(category["name"]) for category in data["categories"]}
        images = {_id(image["id"]): image for image in data["images"]}
        named = {str(image["file_name"]).replace("\\", "/"): _size(image) for image in images.values()}
        of_image: dict[str, list[Mapping[str, Any]]] = {name: [] for name in named}
        for annotation in data["annotations"]:
            if _id(annotation["category_id"]) not in names:
                raise ValueError(
                    f"annotation {annotation.get('id')} has the unknown category {annotation['category_id']}"
                )
            of_image[str(images[_id(annotation["image_id"])]["file_name"]).replace("\\", "/")].append(annotation)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DatasetError(f"{path} is no COCO JSON of segmentations ({reason}); export it again") from error
    if len(named) < len(images):
        raise DatasetError(f"{path} names an image file twice; remove one of the two")
    used = {_id(annotation["category_id"]) for annotations in of_image.values() for annotation in annotations}
    return CocoFile(names=names, images=named, annotations=of_image, used=tuple(names[key] for key in sorted(used)))


def _id(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError(f"the id {value!r} is no number")
    return value


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    height, width = _id(image["height"]), _id(image["width"])
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise ValueError(f"{image['file_name']} is {width}x{height}")
    return height, width


def mask_of(path: Path, name: str, *, classes: Sequence[str], category: str = "") -> NDArray[np.uint8]:
    """The mask of one image, (H, W) class index.

    Args:
        path: the JSON.
        name: ``file_name`` of the image.
        classes: of the benchmark, the background first.
        category: the one that is foreground; `ANY` for all of them.

    Raises:
        DatasetError: a category that ``classes`` has not, or a segmentation that cannot be drawn.
    """
    coco = load(path)
    height, width = coco.images[name]
    mask, crowd = np.zeros((height, width), np.uint8), np.zeros((height, width), bool)
    drawn: list[tuple[int, int, NDArray[np.bool_]]] = []
    for annotation in coco.annotations[name]:
        called = coco.names[annotation["category_id"]]
        if category not in ("", ANY, called):
            continue
        if not category and called not in classes:
            raise DatasetError(f"{path}: {name} has the category {called!r}, which training has not; leave it out")
        index = 1 if category else classes.index(called)
        region = _region(annotation, height, width, where=f"{path}: annotation {annotation.get('id')} of {name}")
        if annotation.get("iscrowd"):
            crowd |= region
        else:
            drawn.append((-int(region.sum()), index, region))
    for _, index, region in sorted(drawn, key=lambda entry: entry[:2]):
        mask[region] = index
    mask[crowd & (mask == 0)] = IGNORE
    return mask


def _region(annotation: Mapping[str, Any], height: int, width: int, *, where: str) -> NDArray[np.bool_]:
    """The annotation's pixels, (H, W) bool, as pycocotools' ``annToMask`` draws them."""
    try:
        from pycocotools import mask as drawing
    except ImportError as error:
        raise DatasetError(
            "COCO JSON is read by pycocotools, which is not installed: pip install pycocotools"
        ) from error
    shape = annotation.get("segmentation")
    if not shape:
        raise DatasetError(f"{where} has a box and no segmentation; export polygons or masks")
    if isinstance(shape, list):
        farthest = 4 * (height + width)
        polygons = [polygon for polygon in shape if isinstance(polygon, list) and len(polygon) >= 6]
        for polygon in polygons:
            plain = all(isinstance(x, int | float) and math.isfinite(x) and abs(x) < farthest for x in polygon)
            if len(polygon) % 2 or not plain:
                raise DatasetError(f"{where} has a polygon that is none; mend or remove it")
        if not polygons:
            return np.zeros((height, width), bool)  # points and lines cover nothing
        return np.asarray(drawing.decode(drawing.merge(drawing.frPyObjects(polygons, height, width)))).astype(bool)
    counts = shape.get("counts") if isinstance(shape, dict) else None
    runs = _runs(counts) if isinstance(counts, str) else counts
    if (
        not isinstance(runs, list)
        or list(shape.get("size", ())) != [height, width]
        or not all(isinstance(run, int) and run >= 0 for run in runs)
        or sum(runs) != height * width
    ):
        raise DatasetError(f"{where} has run lengths that do not fill its image of {width}x{height}; export it again")
    return np.asarray(drawing.decode(drawing.frPyObjects({"size": [height, width], "counts": runs}, height, width))) > 0


def _runs(text: str) -> list[int] | None:
    """COCO's compressed run lengths: five bits a character and one that says whether more follow, each run as the
    difference from the run two before."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if not shift else None


@dataclass(frozen=True, kw_only=True)
class CocoLayout(Layout):
    """JSON files beside their images, in folders of splits, or in ``annotations/``. ``splits``: split -> words that name it
    (``val|valid``), in a file's name or its folder's."""

    splits: Mapping[str, str]
    name: str = "coco"
    distinctive: bool = False

    def matches(self, root: Path) -> bool:
        return bool(self.files(root))

    def files(self, root: Path) -> dict[str, Path]:
        """Part -> its JSON. Raises DatasetError: two for one part."""
        files: dict[str, Path] = {}
        for folder in (root, *subfolders(root)):
            for path in sorted(folder.glob("*.json")):
                if path.name.startswith(_OTHER_TASKS) or not _is_likely(path):
                    continue
                part = self._part(path.stem) or self._part(folder.name if folder != root else "") or "all"
                if part in files:
                    raise DatasetError(f"{files[part]} and {path} are both COCO files of {part}; move one of them away")
                files[part] = path
        return files

    def _part(self, name: str) -> str:
        words = set(re.split(r"[^a-z]+", name.casefold()))
        return next((split for split, names in self.splits.items() if words & set(names.split("|"))), "")

    def categories(self, root: Path) -> tuple[str, ...]:
        """The categories that annotations of any part use, in the order of their ids."""
        return tuple(dict.fromkeys(name for path in self.files(root).values() for name in load(path).used))

    def parts_at(self, root: Path) -> dict[str, Paired]:
        return {part: self._read(path, root, part=part) for part, path in self.files(root).items()}

    def _read(self, path: Path, root: Path, *, part: str) -> Paired:
        names = list(load(path).images)
        for name in names:
            if name.startswith("/") or ".." in name.split("/"):
                raise DatasetError(f"{path} names {name}, which leads out of the folder; name files relative to it")
        folder = self._images(path, root, part=part, names=names)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise DatasetError(
                f"{path} names {len(missing)} files that are not in {folder}, the first is {missing[0]}; complete it"
            )
        if strange := [name for name in names if not is_image(Path(name).name)]:
            raise DatasetError(f"{path} names {strange[0]}, which is no image; convert it to PNG or JPEG")
        stems = [Path(name).stem for name in names]
        if len({name_key(stem) for stem in stems}) < len(stems):
            stems = [str(Path(name).with_suffix("")).replace("/", "_") for name in names]
        pairs = [
            Pair(stem=stem, image=folder / name, mask=path, entry=name) for stem, name in zip(stems, names, strict=True)
        ]
        return Paired(pairs=tuple(pairs))

    def _images(self, path: Path, root: Path, *, part: str, names: Sequence[str]) -> Path:
        """The folder that ``names`` are relative to. One that is named after another part comes last: parts may number their files
        alike. Raises DatasetError: none, or several that nothing tells apart."""
        inner = [*subfolders(root), *subfolders(root / "images")]
        by_name = {part: 0, "": 1}
        inner.sort(key=lambda folder: by_name.get(self._part(folder.name), 2))
        first = [folder for folder in inner if self._part(folder.name) == part]
        usual = [path.parent, path.parent / "images", root, *first, root / "images"]
        near = dict.fromkeys((*usual, *inner))
        there = [folder for folder in near if names and (folder / names[0]).is_file()]
        complete = [folder for folder in there if all((folder / name).is_file() for name in names)]
        if not there:
            raise DatasetError(f"{path} names {', '.join(names[:1]) or 'no images'}; no such file lies below {root}")
        if len(complete) > 1 and complete[0] not in usual:
            raise DatasetError(
                f"{path} names files that are in {complete[0]} and in {complete[1]}; move one of them away, or put the JSON beside "
                "its images"
            )
        return (complete or there)[0]


def _is_likely(path: Path) -> bool:
    """Whether two of COCO's tables, which may come in any order, are named at the file's beginning or end."""
    try:
        with path.open("rb") as file:
            ends = file.read(1 << 16)
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            return len(set(_TABLES.findall(ends + file.read()))) > 1
    except OSError:
        return False
