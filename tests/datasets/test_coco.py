"""COCO JSON read where it is: the masks are pycocotools' own, and nothing in a file reaches its C unchecked."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.cli.data import main
from harness.datasets.base import IGNORE, DatasetError, Pair
from harness.datasets.own import any_folder
from harness.datasets.readers.coco import _runs
from harness.training.cache import ArrayCache
from harness.training.images import ImageSource
from tests.datasets.conftest import opened

pytest.importorskip("pycocotools", reason="an extra: own-data")
from pycocotools import mask as drawing
from pycocotools.coco import COCO

HEIGHT, WIDTH = 40, 56
RNG = np.random.default_rng(0)


def blob(left: int, top: int, side: int = 12) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((rows - top) ** 2 + (columns - left) ** 2 < side**2 / 4).astype(np.uint8)


def rle(drawn: np.ndarray, *, compressed: bool) -> dict[str, Any]:
    encoded = drawing.encode(np.asfortranarray(drawn))
    if compressed:
        return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
    return {"size": [HEIGHT, WIDTH], "counts": _runs(encoded["counts"].decode())}


def polygon(left: float, top: float, side: float = 11.5) -> list[float]:
    return [left, top, left + side, top, left + side, top + side / 2, left + side / 3, top + side]


def document(
    names: list[str], shapes: dict[int, list[dict]], categories: tuple[str, ...] = ("cell", "nucleus")
) -> dict:
    """Annotations by the position of their image."""
    images = [
        {"id": 7 + number, "file_name": name, "height": HEIGHT, "width": WIDTH} for number, name in enumerate(names)
    ]
    annotations = [
        {"id": 100 * number + index, "image_id": 7 + number, "iscrowd": 0, "category_id": 1, "area": 1, **shape}
        for number, drawn in shapes.items()
        for index, shape in enumerate(drawn)
    ]
    named = [
        {"id": index, "name": name} for index, name in enumerate(("things", *categories))
    ]  # as Roboflow has them: no object is of 0
    return {"info": {}, "categories": named, "images": images, "annotations": annotations}


SHAPES: dict[int, list[dict]] = {
    0: [{"segmentation": [polygon(3.3, 4.7), polygon(30, 20)]}],
    1: [{"segmentation": rle(blob(20, 15), compressed=True), "category_id": 2}],
    2: [
        {"segmentation": rle(blob(40, 30), compressed=False)},
        {"segmentation": [polygon(34, 24, 5)], "category_id": 2},
    ],
    3: [{"segmentation": [polygon(2, 2)]}, {"segmentation": rle(blob(8, 8, 30), compressed=False), "iscrowd": 1}],
    4: [{"segmentation": [[5, 5, 25, 5, 15, 20]]}],
    5: [{"segmentation": [polygon(-20, 10, 100)]}],
}
NAMES = [f"slide {number}.jpg" for number in range(12)]


def write(
    folder: Path,
    subfolder: str = "",
    names: list[str] = NAMES,
    shapes: dict = SHAPES,
    file: str = "_annotations.coco.json",
) -> Path:
    (folder / subfolder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / subfolder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(folder / subfolder / name)
    (folder / file if "/" in file else folder / subfolder / file).write_text(json.dumps(document(names, shapes)))
    return folder


def masks(root: Path, **options: str) -> dict[str, np.ndarray]:
    benchmark, splits = opened(root, **options)
    pairs = [pair for part in (splits.train, splits.val, splits.test["test"]) for pair in part]
    return {pair.entry: benchmark.read(pair).mask for pair in pairs}


def oracle(path: Path) -> dict[str, list[tuple[str, bool, np.ndarray]]]:
    """pycocotools' own: image -> (category, crowd, mask) of every annotation."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    return {
        image["file_name"]: [
            (coco.cats[shape["category_id"]]["name"], bool(shape["iscrowd"]), coco.annToMask(shape).astype(bool))
            for shape in coco.imgToAnns[key]
        ]
        for key, image in coco.imgs.items()
    }


@pytest.mark.parametrize("category", ["cell", "nucleus", "any"])
def test_binary_masks_are_the_union_of_pycocotools_masks(tmp_path: Path, category: str) -> None:
    read = masks(write(tmp_path), category=category)
    for name, shapes in oracle(tmp_path / "_annotations.coco.json").items():
        wanted = [(crowd, drawn) for kind, crowd, drawn in shapes if category in (kind, "any")]
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        for crowd, drawn in sorted(wanted, key=lambda shape: not shape[0]):
            expected[drawn] = IGNORE if crowd else 1
        np.testing.assert_array_equal(read[name], expected, err_msg=name)
    assert sum((mask == 1).any() for mask in read.values()) >= 2


def test_several_categories_are_classes_and_the_smaller_object_is_on_top(tmp_path: Path) -> None:
    read = masks(write(tmp_path))
    for name, shapes in oracle(tmp_path / "_annotations.coco.json").items():
        covered = np.zeros((HEIGHT, WIDTH), bool)
        for category, crowd, drawn in sorted(shapes, key=lambda shape: (shape[1], shape[2].sum())):
            top = drawn & ~covered
            assert (read[name][top] == (IGNORE if crowd else {"cell": 1, "nucleus": 2}[category])).all()
            covered |= drawn
        assert not read[name][~covered].any()
    benchmark, _ = opened(tmp_path)
    assert (benchmark.task, benchmark.class_names) == ("multiclass", ("background", "cell", "nucleus"))


def test_ids_may_be_text_and_sizes_floats(tmp_path: Path) -> None:
    expected = masks(write(tmp_path))
    path = tmp_path / "_annotations.coco.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image |= {"id": str(image["id"]), "height": float(HEIGHT), "width": float(WIDTH)}
    for shape in content["annotations"]:
        shape |= {"image_id": float(shape["image_id"]), "category_id": str(shape["category_id"])}
    path.write_text(json.dumps(content))
    read = masks(tmp_path)
    assert read.keys() == expected.keys()
    assert all(np.array_equal(read[name], expected[name]) for name in read)


def test_one_category_alone_is_binary_by_its_name(tmp_path: Path) -> None:
    benchmark, _ = opened(write(tmp_path, shapes={0: SHAPES[0], 3: SHAPES[3]}))
    assert (benchmark.task, benchmark.class_names) == ("binary", ("background", "cell"))


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        ({"train": "train/_annotations.coco.json", "valid": "", "test": ""}, (12, 12, 12)),
        ({"train2017": "annotations/instances_train2017.json", "val2017": "annotations/instances_val2017.json"}, None),
        ({"images": "annotations.json"}, (10, 1, 1)),
    ],
)
def test_splits_and_folders_are_found(tmp_path, folders: dict[str, str], sizes: tuple[int, int, int] | None) -> None:
    for subfolder, file in folders.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        names = [f"{subfolder}{number}.png" for number in range(12)]
        write(tmp_path, subfolder, names=names, file=file or "_annotations.coco.json")
        if file == "annotations.json":
            (tmp_path / subfolder / file).rename(tmp_path / file)
    if "train2017" in folders:
        (tmp_path / "annotations/captions_train2017.json").write_text(json.dumps({"images": [], "annotations": []}))
    _, splits = opened(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test["test"])) == (sizes or (11, 12, 1))


def test_images_that_are_in_two_folders_are_refused(tmp_path: Path) -> None:
    """Names alone do not say which of two copies the masks were drawn on."""
    for subfolder in ("first", "second"):
        write(tmp_path, subfolder, file="annotations.json")
        (tmp_path / subfolder / "annotations.json").rename(tmp_path / "annotations.json")
    with pytest.raises(DatasetError, match="move one of the two away"):
        opened(tmp_path)


def test_two_files_of_one_part_and_a_file_beyond_bounds_are_refused(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "train")
    write(tmp_path, "train", file="more.json")
    with pytest.raises(DatasetError, match="are both COCO files of train"):
        opened(tmp_path)
    (tmp_path / "train" / "more.json").unlink()
    size = (tmp_path / "train" / "_annotations.coco.json").stat().st_size
    monkeypatch.setattr("harness.datasets.readers.coco._MOST_BYTES", size - 1)
    with pytest.raises(DatasetError, match="the limit is 1 GiB; split it"):
        opened(tmp_path, category="any")
    monkeypatch.setattr("harness.datasets.readers.coco._MOST_BYTES", size)
    assert opened(tmp_path, category="any")


BAD = [
    {"segmentation": []},
    {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "zzz"}},
    {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [10, -5, HEIGHT * WIDTH - 5]}},
    {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH + 1]}},
    {"segmentation": {"size": [4000, 4000], "counts": [4000 * 4000]}},
    {"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]},
    {"segmentation": [[0, 0, "1", 0, 3, 3]]},
    {"segmentation": [[0, 0, 1, 0, 3, 3, 4]]},
    {"segmentation": 3},
    {"segmentation": polygon(2, 2)},
    {"segmentation": [[[2, 2], [9, 2], [9, 9]]]},
    {"segmentation": [[2, 2, 9, 9]]},
    {"segmentation": [polygon(2, 2), [2, 2, 9, 9]]},
    {"segmentation": [[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]]},
    {"segmentation": [[0, 0, True, 0, 3, 3]]},
    {"segmentation": [[0, 0, float("nan"), 0, 3, 3]]},
    {"segmentation": [[0, 0, 10**400, 0, 3, 3]]},
]


@pytest.mark.parametrize("bad", BAD)
def test_what_pycocotools_would_break_on_or_draw_as_something_else_is_refused(tmp_path: Path, says, bad: dict) -> None:
    """Also where a valid polygon in the same image would hide it."""
    write(tmp_path, shapes={0: [bad, {"segmentation": [polygon(3, 3)]}]})
    with pytest.raises(DatasetError, match="annotation 0 of slide 0"):
        masks(tmp_path)
    assert "annotation 0 of slide 0" in says(main, "check", f"cells={tmp_path}", code=1)


CELL = [{"image_id": 7, "category_id": 1}]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"categories": []}, "unknown category"),
        ({"images": [{"id": 7, "file_name": "../x.jpg", "height": 4, "width": 4}], "annotations": CELL}, "leads out"),
        ({"images": [{"id": 7, "file_name": "gone.jpg", "height": 4, "width": 4}], "annotations": CELL}, "gone.jpg; complete"),
        ({"images": [{"id": 7, "file_name": name, "height": 4, "width": 4} for name in NAMES[:2]]}, "occurs twice"),
        ({"images": [{"id": at, "file_name": NAMES[0], "height": 4, "width": 4} for at in (7, 8)]}, "occurs twice"),
        ({"images": [{"id": at, "file_name": f"{at}.jpg", "height": 4, "width": 4, "split": at} for at in "ab"]}, "splits a, b"),
        ({"images": [{"id": True, "file_name": "a.jpg", "height": 4, "width": 4}]}, "neither a number nor text"),
        ({"images": [{"id": 7, "file_name": "a.jpg", "height": 4.5, "width": 4}]}, "4x4.5"),
        ({"images": [{"id": 7, "file_name": "a.jpg", "height": 10**6, "width": 10**6}]}, "1000000x1000000"),
        ({"images": [{"id": 7, "file_name": "a.jpg", "height": 10**400, "width": 4}]}, "not a COCO JSON"),
        ({"annotations": []}, "no annotations"),
        ({"annotations": [{"image_id": 99, "category_id": 1}]}, "not a COCO JSON"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_one_line(tmp_path, capsys, change: dict, word: str) -> None:
    write(tmp_path)
    path = tmp_path / "_annotations.coco.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert main(["check", f"cells={tmp_path}"]) in (1, 2)
    output = capsys.readouterr()
    assert word in output.out + output.err
    assert "Traceback" not in output.err


def test_a_category_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cell, nucleus"):
        opened(write(tmp_path), category="cells")


def test_cached_images_of_one_json_keep_their_own_masks(tmp_path: Path) -> None:
    """Two copies of one photograph with different masks: their files alone are the same."""
    folder = write(tmp_path / "data", names=["a.png", "b.png"], shapes={0: SHAPES[0], 1: SHAPES[3]})
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    benchmark = any_folder("cells", folder)[0]()
    json_file = folder / "_annotations.coco.json"
    pairs = [Pair(stem=name, image=folder / name, mask=json_file, entry=name) for name in ("a.png", "b.png")]
    for _ in range(2):
        source = ImageSource(benchmark, pairs, image_size=16, cache=ArrayCache(tmp_path / "cache"))
        for index, pair in enumerate(pairs):
            np.testing.assert_array_equal(source.mask_native(index), benchmark.read(pair).mask)


def test_without_pycocotools_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(DatasetError, match="pip install pycocotools"):
        masks(write(tmp_path))
