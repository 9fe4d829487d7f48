"""COCO JSON as masks, read in place: polygons and run lengths through pycocotools (the extra ``own-data``).

Where objects overlap, the smaller is on top. A crowd's region is ignored (255) where no object is, as in COCO's own scores.
pycocotools checks nothing and may read beyond its arrays, so shapes and sizes are checked here. Boxes and lines are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.datasets.base import IGNORE, DatasetError, Pair
from harness.datasets.readers.layouts import distinct_stems, subfolders
from harness.datasets.readers.opening import MOST_PIXELS, require_file
from harness.datasets.readers.own_layouts import SPLITS, OwnLayout, PairedParts
from harness.datasets.readers.pairing import Paired, is_image

ANY = "any"
"""The word for ``category`` that makes every category foreground."""

_TABLES = re.compile(rb'"(images|annotations|categories)"\s*:')
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
_MOST_BYTES = 1 << 30


class CocoFile(NamedTuple):
    """Per ``file_name`` the (height, width), and (category, annotation) of each object; the categories used, in the order of their ids."""

    images: Mapping[str, tuple[int, int]]
    annotations: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]
    used: Sequence[str]


def load(path: Path) -> CocoFile:
    """Parse a COCO file, once while it stays unchanged on disk; DatasetError if it is not one."""
    return _load(path, (status := path.stat()).st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _load(path: Path, size: int, changed: int) -> CocoFile:
    if size > _MOST_BYTES:
        raise DatasetError(f"{path} has {size} bytes; the limit is 1 GiB; split it, or convert it to mask images")
    try:
        data = parse_json(path.read_bytes())
        categories: dict[str, str] = {}
        for category in data["categories"]:
            if categories.setdefault(_id(category["id"]), str(category["name"])) != str(category["name"]):
                raise ValueError(f"the category {category['id']} occurs twice, under two names")
        images: dict[str, str] = {}
        sizes: dict[str, tuple[int, int]] = {}
        for image in data["images"]:
            key, name = _id(image["id"]), str(image["file_name"]).replace("\\", "/")
            if key in images or name in sizes:
                raise ValueError(f"the id {key} or the file {name} occurs twice: two exports joined? Renumber them")
            images[key], sizes[name] = name, _size(image)
        if len(parts := {str(image["split"]) for image in data["images"] if "split" in image}) > 1:
            raise ValueError(f"its images have the splits {', '.join(sorted(parts))}: write a file for each")
        annotations: dict[str, list[tuple[str, Mapping[str, Any]]]] = {name: [] for name in sizes}
        used = set()
        for annotation in data["annotations"]:
            category = _id(annotation["category_id"])
            if category not in categories:
                raise ValueError(f"annotation {annotation.get('id')} has the unknown category {category}")
            annotation["iscrowd"] = _crowd(annotation)
            used.add(category)
            annotations[images[_id(annotation["image_id"])]].append((categories[category], annotation))
    except Exception as error:  # of a file that is anything but COCO's
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DatasetError(f"{path} is not a COCO JSON file of segmentations ({reason}); export it again") from error
    ordered = sorted(used, key=lambda key: (not key.isdigit(), len(key), key))
    return CocoFile(sizes, annotations, list(dict.fromkeys(categories[key] for key in ordered)))


def _id(value: object) -> str:
    """An id as text: programs write 7, 7.0 or "7" for the same id."""
    if isinstance(value, bool) or not isinstance(value, int | str | float):
        raise ValueError(f"the id {value!r} is neither a number nor text")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def parse_json(content: bytes) -> Any:
    """Parsed JSON. Raises ValueError: invalid, or an object has a key twice, where only the last would count."""

    def keyed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
        return found

    return json.loads(content, object_pairs_hook=keyed)


def _crowd(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation is a crowd's: programs write 1, true and "1"."""
    given = annotation.get("iscrowd")
    known = {"": False, "none": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
    if (word := str(given).casefold()) not in known:
        raise ValueError(f"annotation {annotation.get('id')} has iscrowd {given!r}, which is 0 or 1")
    return known[word]


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    height, width = float(image["height"]), float(image["width"])
    if not (height.is_integer() and width.is_integer()) or min(height, width) < 1 or height * width > MOST_PIXELS:
        raise ValueError(f"{image['file_name']} is {image['width']}x{image['height']}")
    return int(height), int(width)


def mask_of(path: Path, name: str, *, classes: Sequence[str], category: str = "") -> NDArray[np.uint8]:
    """The mask of one image, (H, W) class index.

    Args:
        path: the JSON.
        name: ``file_name`` of the image.
        classes: of the benchmark, the background first, with every category of the file unless one is chosen.
        category: the one that is foreground; `ANY` for all of them.

    Raises:
        DatasetError: a segmentation that cannot be drawn.
    """
    coco = load(path)
    shape = coco.images[name]
    mask, crowd = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    drawn: list[tuple[int, int, NDArray[np.bool_]]] = []
    for called, annotation in coco.annotations[name]:
        if category not in ("", ANY, called):
            continue
        region = _region(annotation, *shape, where=f"{path}: annotation {annotation.get('id')} of {name}")
        if annotation["iscrowd"]:
            crowd |= region
        else:
            drawn.append((-int(region.sum()), 1 if category else classes.index(called), region))
    for _, index, region in sorted(drawn, key=lambda entry: entry[:2]):
        mask[region] = index
    mask[crowd & (mask == 0)] = IGNORE
    return mask


def _region(annotation: Mapping[str, Any], height: int, width: int, *, where: str) -> NDArray[np.bool_]:
    """The annotation's pixels, (H, W) bool, as pycocotools' ``annToMask`` draws them."""
    drawing = _pycocotools()
    shape = annotation.get("segmentation")
    if not shape:
        raise DatasetError(f"{where} has a box and no segmentation; export polygons or masks")
    if isinstance(shape, list):
        _check_polygons(shape, height, width, where)
        return np.asarray(drawing.decode(drawing.merge(drawing.frPyObjects(shape, height, width)))).astype(bool)
    counts = shape.get("counts") if isinstance(shape, dict) else None
    size = shape.get("size") if isinstance(shape, dict) else None
    runs = _runs(counts) if isinstance(counts, str) else counts
    runs = runs if isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs) else []
    if sum(runs) != height * width or size != [height, width]:
        raise DatasetError(f"{where} has run lengths that do not fill its image of {width}x{height}; export it again")
    return np.asarray(drawing.decode(drawing.frPyObjects({"size": [height, width], "counts": runs}, height, width))) > 0


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise DatasetError("COCO JSON needs pycocotools, which is not installed: pip install pycocotools") from error
    return mask


def _check_polygons(polygons: Sequence[Any], height: int, width: int, where: str) -> None:
    """Refuse boxes, lines, lists of points, and coordinates from 0 to 1: they would be drawn as something else, or as nothing."""
    right = all(isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
    numbers = [x for polygon in polygons for x in polygon] if right else []
    right &= all(type(x) in (int, float) and abs(x) < 4 * (height + width) for x in numbers)
    if not right or max(numbers) <= 1 < min(height, width):
        raise DatasetError(
            f"{where} has something other than polygons [[x, y, x, y, x, y, …], …] in pixels of its image of {width}x{height}; export "
            "it again"
        )


def _runs(text: str) -> list[int] | None:
    """COCO's compressed run lengths: five bits per character and one that says whether more follow, each run as the
    difference from the run two before."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16 > 0) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if not shift else None


class CocoLayout(OwnLayout):
    """JSON files with their images, in folders of splits, or in ``annotations/``; a file's or its folder's name says the split."""

    name = "coco"
    hint = "a COCO JSON with its images"

    def matches(self, root: Path) -> bool:
        return bool(self.files(root))

    def files(self, root: Path) -> dict[str, Path]:
        """Part -> its JSON. Raises DatasetError: two for one part, or pycocotools is not installed."""
        files: dict[str, Path] = {}
        inner = subfolders(root)
        of_splits = [below for folder in inner if _part(folder.name) for below in subfolders(folder)]
        for folder in (root, *inner, *of_splits):
            for path in sorted(folder.glob("*.json")):
                if path.name.startswith(_OTHER_TASKS) or not _is_likely(path):
                    continue
                named = (path.stem, *folder.relative_to(root).parts[::-1])
                part = next(filter(None, map(_part, named)), "all")
                if files.setdefault(part, path) != path:
                    raise DatasetError(f"{files[part]} and {path} are both COCO files of {part}; move one of them away")
        if files:
            _pycocotools()
        return files

    def classes(self, root: Path, category: str) -> tuple[str, ...]:
        """The background, and the one category that is looked for or all that annotations of any part use, in the order of their ids."""
        names = dict.fromkeys(name for path in self.files(root).values() for name in load(path).used)
        if not names:
            raise DatasetError(f"the COCO files in {root} have no annotations; export them again")
        if category not in ("", ANY, *names):
            raise DatasetError(f"no annotation in {root} has the category {category!r}; they have {', '.join(names)}")
        chosen = {ANY: ["foreground"], "": [name for name in names if name != "background"]}.get(category, [category])
        return ("background", *chosen)

    def parts_at(self, root: Path) -> PairedParts:
        return {part: self._read(path, root, part) for part, path in self.files(root).items()}

    def _read(self, path: Path, root: Path, part: str) -> Paired:
        names = list(load(path).images)
        for name in names:
            if name.startswith("/") or ".." in name.split("/") or not is_image(Path(name).name):
                raise DatasetError(f"{path} names {name}, which is not an image, or leads out of the folder")
        # Names are relative to the JSON, to the root, or to a folder that is named after this part before one of another: parts may
        # number their files alike.
        inner = [*subfolders(path.parent), *subfolders(root), *subfolders(root / "images")]
        inner += [below for folder in subfolders(root) if _part(folder.name) == part for below in subfolders(folder)]
        inner.sort(key=lambda folder: {part: 0, "": 1}.get(_part(folder.name), 2))
        of_part = (folder for folder in inner if _part(folder.name) == part)
        folders = [path.parent, path.parent / "images", root, *of_part, root / "images"]
        absent = {at: [name for name in names if not (at / name).is_file()] for at in (*folders, *inner)}
        folder = min(absent, key=lambda folder: len(absent[folder]))
        if absent[folder]:
            count, first = len(absent[folder]), absent[folder][0]
            raise DatasetError(f"{path} names {count} files that are not in {folder}, the first {first}; complete it")
        if folder not in folders and (others := [at for at in absent if at != folder and not absent[at]]):
            raise DatasetError(f"{path} names files that are in {folder} and in {others[0]}; move one of the two away")
        named = zip(distinct_stems(names), names, strict=True)
        return Paired(pairs=tuple(Pair(stem=stem, image=folder / name, mask=path, entry=name) for stem, name in named))


def _part(name: str) -> str:
    words = set(re.split(r"[^a-z]+", name.casefold()))
    return next((split for split, names in SPLITS.items() if words & set(names.split("|"))), "")


def _is_likely(path: Path) -> bool:
    """Whether two of COCO's tables, which may come in any order, are named at the file's beginning or end. Raises DatasetError: it is
    a pipe."""
    require_file(path)
    with path.open("rb") as file:
        ends = file.read(1 << 16)
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        return len(set(_TABLES.findall(ends + file.read()))) > 1
