"""What people have is often a part: tiles of some images, ISIC without its test part, images stretched to squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import samples
from datasets.base import DatasetError, Splits
from datasets.isic2017 import LESIONS_OF_VALIDATION, number
from datasets.preparing.checking import check
from datasets.road import image_of_tile
from tests.datasets.conftest import MakeBenchmark

GREY, WHITE = (90, 90, 90), 255


def write_pair(image: Path, mask: Path, *, size: tuple[int, int] = (40, 30), image_size: tuple[int, int] | None = None):
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", image_size or size, GREY).save(image)
    drawn = np.zeros(size[::-1], np.uint8)
    drawn[5:15, 5:15] = WHITE
    Image.fromarray(drawn).save(mask)


def write_tiles(root: Path, *, images: int, part: str = "train") -> Path:
    folder = root / "massachusetts_roads_tiles"
    for image in range(images):
        for tile in range(1 + image % 3):
            name = f"{10078660 + 15 * image}_15_r{tile}c2.png"
            write_pair(folder / part / "sat" / name, folder / part / "map" / name, size=(32, 32))
    return folder


def sides(splits: Splits) -> dict[str, set[str | None]]:
    parts = {"train": splits.train, "val": splits.val, **splits.test}
    return {name: {image_of_tile(pair.stem) for pair in pairs} for name, pairs in parts.items()}


def assert_images_stay_whole(splits: Splits) -> None:
    train, val, test = sides(splits).values()
    assert None not in train | val | test
    assert not train & val
    assert not train & test
    assert not val & test


@pytest.mark.parametrize("seed", range(5))
def test_all_tiles_of_an_image_are_on_one_side(make: MakeBenchmark, tmp_path: Path, seed: int) -> None:
    write_tiles(tmp_path, images=24)
    road = make("road", split_seed=seed)
    splits = road.splits(road.locate(tmp_path))
    assert splits.layout == "tiles"
    assert_images_stay_whole(splits)
    assert splits.note == "48 tiles of 24 images"
    assert (
        f"carved (seed {seed}, {len(splits.test['test'])} test and {len(splits.val)} val by whole images)"
        == splits.rule
    )


def test_tiles_beside_other_parts_are_not_carved_anew(make: MakeBenchmark, tmp_path: Path) -> None:
    """Somebody tiled the official splits: those stay."""
    for part in ("train", "valid", "test"):
        write_tiles(tmp_path, images=3, part=part)
    road = make("road")
    splits = road.splits(road.locate(tmp_path))
    assert (splits.layout, splits.rule) == ("original", "official")


def test_training_images_alone_are_not_taken_for_tiles(make: MakeBenchmark, tmp_path: Path) -> None:
    name = "10078660_15.png"
    write_pair(tmp_path / "road/train/sat" / name, tmp_path / "road/train/map" / name)
    with pytest.raises(DatasetError, match="no Massachusetts Roads in"):
        make("road").locate(tmp_path)


def write_isic(root: Path, *, train: tuple[str, ...], val: tuple[str, ...], image_size: tuple[int, int]) -> Path:
    for part, stems in (("Training", train), ("Validation", val)):
        for stem in stems:
            write_pair(
                root / f"ISIC2017/ISIC-2017_{part}_Data/{stem}.jpg",
                root / f"ISIC2017/ISIC-2017_{part}_Part1_GroundTruth/{stem}_segmentation.png",
                image_size=image_size,
            )
    return root / "ISIC2017"


TRAIN = (
    *(f"ISIC_{number:07d}" for number in range(20)),
    "ISIC_0012970",
    "ISIC_0000171",
    "ISIC_0000222",
    "ISIC_0014846",
)
VAL = ("ISIC_0012127", "ISIC_0001769")  # not ISIC_0015124, of which ISIC_0000171 is a picture


def test_isic_without_its_test_part_says_which_rule_does_without(make: MakeBenchmark, tmp_path: Path) -> None:
    folder = write_isic(tmp_path, train=TRAIN, val=VAL, image_size=(32, 32))
    isic = make("isic2017")
    assert isic.locate(tmp_path) == folder
    with pytest.raises(DatasetError, match=r"no test part.*benchmarks\.isic2017\.split_rule=val-as-test"):
        isic.splits(folder)


@pytest.mark.parametrize("seed", range(8))
def test_isic_validation_is_tested_and_no_copy_of_it_trained_on(make: MakeBenchmark, tmp_path: Path, seed: int) -> None:
    write_isic(tmp_path, train=TRAIN, val=VAL, image_size=(32, 32))
    isic = make("isic2017", split_rule="val-as-test", split_seed=seed)
    splits = isic.splits(isic.locate(tmp_path))
    train, val, test = ({pair.stem for pair in part} for part in (splits.train, splits.val, splits.test["test"]))
    assert test == set(VAL)
    assert train | val == set(TRAIN) - {"ISIC_0012970"}
    assert not train & val
    pair = {"ISIC_0000222", "ISIC_0014846"}
    assert pair <= train or pair <= val, "two pictures of one lesion"
    assert splits.rule.startswith("val-as-test: official validation tested; val carved")
    assert splits.rule.endswith("; 1 training images of tested lesions left out")
    assert splits.note.startswith("validation as test, ")


def test_rule_does_not_touch_the_official_splits(make: MakeBenchmark, sample_of) -> None:
    root = sample_of("isic2017")
    official, ruled = make("isic2017"), make("isic2017", split_rule="val-as-test")
    splits, other = official.splits(official.locate(root)), ruled.splits(ruled.locate(root))
    assert splits.rule == "official"
    assert {pair.stem for pair in other.test["test"]} == {pair.stem for pair in splits.val}


def test_stretched_images_are_read_at_the_shape_of_their_masks(make: MakeBenchmark, tmp_path: Path) -> None:
    write_isic(tmp_path, train=TRAIN, val=VAL, image_size=(32, 32))
    isic = make("isic2017", split_rule="val-as-test")
    splits = isic.splits(isic.locate(tmp_path))
    assert splits.note.endswith("32 px copy")
    assert isic.read(splits.train[0]).image.shape == (30, 40, 3)
    found = check(isic, tmp_path / "ISIC2017", workers=1, progress=lambda *_: None)
    (sizes,) = (verdict for verdict in found.verdicts if verdict.rule == "image and mask size")
    assert sizes.status == "warned"
    assert "every image is 32x32, 25 masks are not (up to 40x30)" in sizes.message


def test_images_of_another_shape_that_are_no_squares_are_still_refused(make: MakeBenchmark, tmp_path: Path) -> None:
    write_isic(tmp_path, train=TRAIN, val=VAL, image_size=(40, 25))  # 20 % off
    isic = make("isic2017", split_rule="val-as-test")
    with pytest.raises(DatasetError, match="the image is 40x25, its mask 40x30; these are no pair"):
        isic.read(isic.splits(isic.locate(tmp_path)).train[0])


def test_square_images_are_only_excused_where_such_copies_are_known(make: MakeBenchmark, tmp_path: Path) -> None:
    folder = samples.write("kvasir", tmp_path, images=12, size=48)
    for path in (folder / "images").glob("*.jpg"):
        Image.open(path).resize((40, 40)).save(path)
    kvasir = make("kvasir")
    pairs = kvasir.splits(folder).train
    shown = next(pair for pair in pairs if Image.open(pair.mask).width != Image.open(pair.mask).height)
    with pytest.raises(DatasetError, match="these are no pair"):
        kvasir.read(shown)


# --- real files


def test_real_road_tiles(make: MakeBenchmark, real_data: Path) -> None:
    road = make("road")
    splits = road.splits(road.locate(real_data))
    assert splits.note == "70 tiles of 39 images"
    assert [len(splits.train), len(splits.val), len(splits.test["test"])] == [41, 8, 21]
    assert_images_stay_whole(splits)
    for pair in splits.train[::10]:
        assert road.read(pair).mask.mean() == pytest.approx(
            (np.asarray(Image.open(pair.mask).convert("L")) > 127).mean()
        )


def test_real_isic_without_its_test_part(make: MakeBenchmark, real_data: Path) -> None:
    isic = make("isic2017", split_rule="val-as-test")
    splits = isic.splits(isic.locate(real_data))
    assert [len(splits.train), len(splits.val), len(splits.test["test"])] == [1796, 200, 150]
    assert splits.note == "validation as test, 256 px copy"
    parts = (splits.train, splits.val, splits.test["test"])
    lesions = [{LESIONS_OF_VALIDATION.get(number(pair), isic.group(pair)) for pair in part} for part in parts]
    assert sum(map(len, lesions)) == len(set().union(*lesions))
    sample = isic.read(splits.train[0])
    assert sample.image.shape[:2] == sample.mask.shape != (256, 256)


def test_real_cvc_sequences_stay_whole(make: MakeBenchmark, real_data: Path) -> None:
    cvc = make("cvc612")
    splits = cvc.splits(cvc.locate(real_data))
    parts = (splits.train, splits.val, splits.test["test"])
    assert [len(part) for part in parts] == [479, 69, 64]
    sequences = [{cvc.group(pair) for pair in part} for part in parts]
    assert sum(map(len, sequences)) == len(set().union(*sequences)) == 29
    assert splits.note == ""
