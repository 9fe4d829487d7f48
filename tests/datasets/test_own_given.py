"""What a user's folder says is kept: splits, groups and names that the harness's own rules could take for something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.data import main
from harness.datasets.base import DataOptions, DatasetError
from harness.datasets.own import any_folder, own_benchmark
from harness.datasets.reading.folder_benchmark import CARVED
from harness.datasets.reading.own_layouts import Patterns
from tests.datasets.conftest import opened

STEMS = [f"i{number}" for number in range(12)]


def _image(path: Path, seed: int = 0, size: tuple[int, int] = (24, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)


def _mask(path: Path, *values: int, size: tuple[int, int] = (24, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, dtype=np.uint8)
    for place, value in enumerate(values or (255,)):
        mask[8:12, 6 * place + 2 : 6 * place + 6] = value
    Image.fromarray(mask).save(path)


def _pairs(
    root: Path, stems: Iterable[str], *, images: str = "images", masks: str = "masks", mask: str = "{}.png"
) -> None:
    for number, stem in enumerate(stems):
        _image(root / images / f"{stem}.jpg", number)
        _mask(root / masks / mask.format(stem))


def _coco(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": index, "file_name": name, "height": 24, "width": 30} for index, name in enumerate(names)]
    shape = {"category_id": 1, "iscrowd": 0, "segmentation": [[2, 2, 9, 2, 9, 9]]}
    annotations = [{"id": index, "image_id": index, **shape} for index in range(len(names))]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]})
    )


def _beside_a_test(root: Path) -> None:
    _pairs(root, STEMS)
    _pairs(root / "test", ["t0", "t1"])


def _one_folder(root: Path) -> None:
    _pairs(root, STEMS, images="", masks="", mask="{}_mask.png")
    _pairs(root / "test", ["t0", "t1"], images="", masks="", mask="{}_mask.png")


def _coco_beside(root: Path) -> None:
    for name in STEMS:
        _image(root / f"{name}.jpg")
    for name in ("t0", "t1"):
        _image(root / "test" / f"{name}.jpg")
    _coco(root / "annotations.json", [f"{name}.jpg" for name in STEMS])
    _coco(root / "test" / "_annotations.coco.json", ["t0.jpg", "t1.jpg"])


def _list_of_tests(root: Path) -> None:
    _pairs(root, [*STEMS, "t0", "t1"])
    (root / "test.txt").write_text("t0\nt1\n")


@pytest.mark.parametrize("write", [_beside_a_test, _one_folder, _coco_beside, _list_of_tests])
def test_a_test_part_that_is_given_alone_is_kept(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    _, splits = opened(tmp_path)
    assert {pair.stem for pair in splits.test["test"]} == {"t0", "t1"}
    assert {pair.stem for pair in (*splits.train, *splits.val)} == set(STEMS)
    assert splits.rule.startswith("given test; val carved")
    _, carved = opened(tmp_path, split_rule=CARVED)
    assert carved.rule.startswith("carved")
    assert len(carved.test["test"]) == 1


def test_lists_of_some_splits_leave_the_rest_to_the_rule_and_tell_of_images_in_none(tmp_path: Path) -> None:
    _pairs(tmp_path, [*STEMS, "spare"])
    (tmp_path / "train.txt").write_text("\n".join(STEMS[:10]))
    (tmp_path / "val.txt").write_text("\n".join(STEMS[10:]))
    _, splits = opened(tmp_path)
    assert {pair.stem for pair in splits.val} == set(STEMS[10:])
    assert splits.rule.startswith("given val; test carved")
    assert splits.rule.endswith("; 1 images in no list left out")
    (tmp_path / "train.txt").write_text("\n".join(STEMS[:9]))
    (tmp_path / "test.txt").write_text(STEMS[9])
    assert opened(tmp_path)[1].rule == f"lists in {tmp_path.name}/ (9/2/1); 1 images in no list left out"


def test_pairs_beside_training_pairs_are_refused(tmp_path: Path) -> None:
    _one_folder(tmp_path)
    (tmp_path / "test").rename(tmp_path / "train")
    with pytest.raises(DatasetError, match="has pairs in train/ and 12 beside it"):
        opened(tmp_path)


def test_images_of_another_split_with_the_same_numbers_are_not_a_jsons_own(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(12)]
    for number, name in enumerate(names):
        _image(tmp_path / "test" / name, number)
        _image(tmp_path / "train" / name, 100 + number)
    _coco(tmp_path / "annotations" / "instances_train.json", names)
    _, splits = opened(tmp_path)
    assert {pair.image.parent.name for part in splits.parts.values() for pair in part} == {"train"}
    _coco(tmp_path / "annotations" / "instances_test.json", names)
    _, splits = opened(tmp_path)
    assert {pair.image.parent.name for pair in splits.test["test"]} == {"test"}
    assert {pair.image.parent.name for pair in (*splits.train, *splits.val)} == {"train"}


@pytest.mark.parametrize(
    ("folders", "json_of", "read"),
    [
        (["train2017"], {"train": "i", "val": "j"}, "train2017"),  # LVIS: validation images lie among those of training
        (["images", "previews"], {"all": "i"}, "images"),
    ],
)
def test_a_json_beside_one_folder_or_the_usual_one_is_read(tmp_path, folders, json_of, read) -> None:
    for folder in folders:
        for letter in json_of.values():
            for number in range(12):
                _image(tmp_path / folder / f"{letter}{number}.jpg")
    for part, letter in json_of.items():
        _coco(tmp_path / f"{part}.json", [f"{letter}{number}.jpg" for number in range(12)])
    _, splits = opened(tmp_path)
    assert {pair.image.parent.name for pairs in splits.parts.values() for pair in pairs} == {read}


def test_a_json_whose_names_lie_in_two_folders_is_refused(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        _image(tmp_path / folder / "0.jpg")
    _coco(tmp_path / "annotations.json", ["0.jpg"])
    with pytest.raises(DatasetError, match=r"are in .*first and in .*second"):
        opened(tmp_path)


def test_groups_are_found_where_splits_number_their_files_alike(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 20), ("test", 2)):
        _pairs(tmp_path / split, [f"p5_{first + number}" for number in range(3)] + [f"{split}_0"])
    benchmark, splits = opened(tmp_path, group=r"(.+)_\d+")
    assert {pair.stem for pair in splits.train} >= {"train_p5_0", "train_train_0"}  # p5_2 is in train and in test
    groups = {split: {benchmark.group(pair) for pair in pairs} for split, pairs in splits.parts.items()}
    assert groups["train"] & groups["test"] == {"p5"}
    assert main(["check", f"mine={tmp_path}", "--workers", "1", "--group", r"(.+)_\d+"]) == 1


def _two_images_a_mask(root: Path) -> None:
    for number in range(3):
        _image(root / "images" / f"{number}.jpg")
        _image(root / "images" / f"photo_{number}.jpg")
        _mask(root / "masks" / f"{number}_mask.png")


def _folders_in_images(root: Path) -> None:
    _pairs(root, STEMS)
    _pairs(root, ["a", "b"], images="images/more", masks="masks/more")


def _slices(root: Path) -> None:
    _pairs(root, STEMS)
    pages = [Image.new("L", (30, 24), level) for level in (9, 99)]
    (root / "images/i0.jpg").unlink()
    pages[0].save(root / "images/i0.tif", save_all=True, append_images=pages[1:])


def _patients(root: Path) -> None:
    for patient in "abc":
        _pairs(root, STEMS[:3], images=f"images/{patient}", masks=f"masks/{patient}")


def _csv_of_patients(root: Path) -> None:
    _image(root / "photos" / "0.jpg")
    (root / "train.csv").write_text("id,age\n0,44\n")


def _damaged(root: Path) -> None:
    _pairs(root, STEMS)
    path = root / "masks" / "i0.png"
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_two_images_a_mask, "0_mask.png fits two images, 0.jpg and photo_0.jpg; keep one of them"),
        (_folders_in_images, "images holds images and a folder more/ of more, which "),
        (_slices, "i0.tif has 2 pages of 30x24; save each as a file of its own"),
        (_patients, "--set benchmarks.mine.images='images/**/*' --set benchmarks.mine.masks='masks/**/{stem}.png'"),
        (_csv_of_patients, "train.csv has no two columns that name files; call them image and label"),
    ],
)
def test_what_is_not_one_data_set_is_one_line(tmp_path, capsys, write, message: str) -> None:
    write(tmp_path)
    assert main(["check", f"mine={tmp_path}", "--workers", "1"]) in (1, 2)
    assert message in "".join(capsys.readouterr())


def test_validation_pairs_alone_say_what_is_missing(tmp_path: Path) -> None:
    for number in range(3):
        _image(tmp_path / "val2017" / f"{number}.jpg")
    _coco(tmp_path / "annotations" / "instances_val2017.json", [f"{number}.jpg" for number in range(3)])
    with pytest.raises(DatasetError, match=r"has the val part \(3 pairs\) of mine and no train part; get it"):
        opened(tmp_path)
    assert opened(tmp_path, split_rule=CARVED)[1].rule.startswith("carved")


def test_the_patterns_that_are_offered_for_a_folder_a_patient_read_it(tmp_path: Path) -> None:
    _patients(tmp_path)
    _, splits = opened(tmp_path, images="images/**/*", masks="masks/**/{stem}.png")
    assert sum(map(len, splits.parts.values())) == 9


def test_a_mistyped_rule_is_a_message(tmp_path: Path) -> None:
    _pairs(tmp_path, STEMS)
    with pytest.raises(DatasetError, match="mine has no split rule 'nope'"):
        any_folder("mine", tmp_path, DataOptions(split_rule="nope"))


def test_a_csv_of_something_else_hides_no_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _pairs(tmp_path / split, [f"{split}{number}" for number in range(4)])
    (tmp_path / "train.csv").write_text("id,rle_mask\ntrain0,1 5\n")
    assert opened(tmp_path)[1].layout == "folders"


def test_a_csv_that_names_images_is_not_left_aside(tmp_path: Path) -> None:
    """Its splits would be carved anew from the folders beside it."""
    _pairs(tmp_path, STEMS)
    (tmp_path / "train.csv").write_text("filename,mask\ni0.jpg,i0.png\n")
    with pytest.raises(DatasetError, match="has no two columns that name files"):
        opened(tmp_path)


def test_a_csv_says_how_pairs_go_that_the_folders_alone_would_not(tmp_path: Path) -> None:
    _folders_in_images(tmp_path)
    lines = [f"images/{stem}.jpg,masks/{stem}.png" for stem in (*STEMS, "more/a", "more/b")]
    (tmp_path / "all.csv").write_text("\n".join(["image,label", *lines]))
    _, splits = opened(tmp_path)
    assert sum(map(len, splits.parts.values())) == 14


def test_an_empty_folder_among_images_is_nothing(tmp_path: Path) -> None:
    _pairs(tmp_path, STEMS)
    for name in ("images", "masks"):
        (tmp_path / name / "old").mkdir()
    assert opened(tmp_path)[1].layout == "folder"


def test_a_list_that_names_no_image_is_none_and_one_with_training_images_counts_first(tmp_path: Path) -> None:
    _lists_in_two_places(tmp_path)
    _, splits = opened(tmp_path)
    assert [pair.stem for pair in splits.test["test"]] == ["i11"]
    (tmp_path / "splits" / "test.txt").unlink()
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").unlink()
    (tmp_path / "test.txt").write_text("notes of the weekly meeting\n")
    assert opened(tmp_path)[1].rule.startswith("carved")


def _lists_in_two_places(root: Path) -> None:
    _pairs(root, STEMS)
    for name, stems in (("train", STEMS[:9]), ("val", STEMS[9:11]), ("test", STEMS[11:])):
        (root / f"{name}.txt").write_text("\n".join(stems))
    (root / "splits").mkdir()
    (root / "splits" / "test.txt").write_text(STEMS[0])


def test_folders_of_classes_beside_one_that_is_called_as_masks_are(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(12):
            _image(tmp_path / "images" / name / f"{number}.png", number)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "classes.csv").write_text("cat,dog\n")
    made, _ = any_folder("mine", tmp_path)
    assert made.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "patterns", [{}, {"images": "images/ä*.jpg", "masks": "masks/{stem}.png"}], ids=["names", "patterns"]
)
def test_an_accent_may_be_a_character_of_its_own_in_one_of_two_names(tmp_path: Path, patterns: dict[str, str]) -> None:
    """As in folders and lists that were made on a Mac."""
    for number in range(8):
        _image(tmp_path / "images" / f"a\u0308{number}.jpg", number)
        _mask(
            tmp_path / "masks" / f"\u00c4{number}.png" if not patterns else tmp_path / "masks" / f"\u00e4{number}.png"
        )
    for split, numbers in (("train", "01234"), ("test", "567")):
        (tmp_path / f"{split}.txt").write_text("\n".join(f"\u00e4{number}" for number in numbers), encoding="utf-8")
    _, splits = opened(tmp_path, **patterns)
    assert [pair.image.stem[-1] for pair in splits.test["test"]] == ["5", "6", "7"]
    assert all(pair.image.stem[-1] == pair.mask.stem[-1] for pair in splits.train)


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    _pairs(tmp_path, STEMS)
    for name in ("latest", "current"):
        (tmp_path / name).symlink_to(tmp_path, target_is_directory=True)
    layout = Patterns(images="**/images/*", masks="**/masks/{stem}.png")
    assert len(layout.parts_at(tmp_path)["all"].pairs) == len(STEMS)


def test_a_damaged_mask_is_not_explained_by_its_classes(tmp_path: Path) -> None:
    _damaged(tmp_path)
    with pytest.raises(DatasetError, match=r"i0.png is unreadable .*; restore it from the archive$"):
        own_benchmark("mine", ("background", "foreground"))().decode_mask(tmp_path / "masks" / "i0.png")


def test_255_is_one_thing_in_all_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _pairs(tmp_path, STEMS)
    _mask(tmp_path / "masks" / "i0.png", 1, 255)
    assert main(["check", f"mine={tmp_path}", "--workers", "1"]) == 1
    assert "255 is the object in 11 masks, and to be ignored in 1 that hold 1 too" in capsys.readouterr().out
    _mask(tmp_path / "masks" / "i0.png")
    (tmp_path / "classes.txt").write_text("ground\ntree\n")
    assert main(["check", f"mine={tmp_path}", "--workers", "1"]) == 1
    assert "255 is to be ignored where classes.txt names the classes: write 1" in capsys.readouterr().out


def test_an_image_whose_mask_fits_it_as_it_is_stored_is_not_said_to_be_turned(tmp_path: Path, capsys) -> None:
    _pairs(tmp_path, STEMS)
    exif = Image.Exif()
    exif[274] = 6
    Image.open(tmp_path / "images/i0.jpg").save(tmp_path / "images/i0.jpg", exif=exif)
    assert main(["check", f"mine={tmp_path}", "--workers", "1"]) == 0
    told = capsys.readouterr().out
    assert "EXIF rotation" in told
    assert "turned upright" not in told
    assert "is scaled to the mask" not in told
