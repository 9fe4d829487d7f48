"""What people have is often a part: tiles of some images, ISIC without its test part, images stretched to squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets import samples
from harness.datasets.base import DatasetError
from harness.datasets.cvc612 import FIRST_FRAMES
from harness.datasets.preparing.checking import check
from tests.datasets.conftest import MakeBenchmark

GREY, WHITE = (90, 90, 90), 255


def write_pair(image: Path, mask: Path, *, size: tuple[int, int] = (40, 30), image_size: tuple[int, int] | None = None):
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", image_size or size, GREY).save(image)
    drawn = np.zeros(size[::-1], np.uint8)
    drawn[5:15, 5:15] = WHITE
    Image.fromarray(drawn).save(mask)


@pytest.mark.parametrize(
    ("name", "parts", "missing"),
    [
        ("sbu", {"SBUTrain4KRecoveredSmall/Shadow{}": "lssd"}, "no test part"),
        ("sbu", {"SBU-Test/Shadow{}": "lssd"}, "no train part"),
        ("road", {"train/{}": "a", "valid/{}": "b"}, "no test part"),
        ("trans10k_v2", {"train/{}": "1"}, "no test part"),
    ],
)
def test_a_benchmark_of_which_a_part_is_missing_names_it_and_can_be_carved(make, tmp_path, name, parts, missing):
    benchmark = make(name)
    folders = {"road": ("sat", "map"), "trans10k_v2": ("images", "masks_12")}.get(name, ("Images", "Masks"))
    for part, stem in parts.items():
        for index in range(20):
            image, mask = (tmp_path / benchmark.folders[0] / part.format(folder) for folder in folders)
            write_pair(image / f"{stem}{index}.png", mask / f"{stem}{index}.png")
    with pytest.raises(DatasetError, match="carved") as caught:
        benchmark.splits(benchmark.locate(tmp_path))
    assert missing in str(caught.value)
    assert f"benchmarks.{name}.split_rule=carved" in str(caught.value)
    carved = make(name, split_rule="carved")
    splits = carved.splits(carved.locate(tmp_path))
    stems = [{pair.stem for pair in part} for part in (splits.train, splits.val, splits.test["test"])]
    assert sum(map(len, stems)) == len(set().union(*stems)) == 20 * len(parts)
    assert all(stems)
    assert splits.rule.startswith("carved (seed 0, ")
    assert "carved" in splits.note.split(", ")


def write_isic(root: Path, *, train: tuple[str, ...], val: tuple[str, ...], image_size: tuple[int, int]) -> Path:
    for part, stems in (("Training", train), ("Validation", val)):
        for stem in stems:
            write_pair(
                root / f"ISIC2017/ISIC-2017_{part}_Data/{stem}.jpg",
                root / f"ISIC2017/ISIC-2017_{part}_Part1_GroundTruth/{stem}_segmentation.png",
                image_size=image_size,
            )
    return root / "ISIC2017"


TRAIN = tuple(f"ISIC_{number:07d}" for number in (*range(20), 12970, 171, 222, 14846))
VAL = ("ISIC_0012127", "ISIC_0001769")  # not ISIC_0015124, of which ISIC_0000171 is a picture


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
    checked = check(isic, tmp_path / "ISIC2017", progress=lambda *_: None)
    (sizes,) = (verdict for verdict in checked.verdicts if verdict.rule == "image and mask size")
    assert sizes.status == "warned"
    assert "25 masks have another size" in sizes.message


def test_square_images_are_only_excused_where_such_copies_are_known(make: MakeBenchmark, tmp_path: Path) -> None:
    folder = samples.write_samples("kvasir", tmp_path, images=12, size=48)
    for path in (folder / "images").glob("*.jpg"):
        Image.open(path).resize((40, 40)).save(path)
    kvasir = make("kvasir")
    pairs = kvasir.splits(folder).train
    shown = next(pair for pair in pairs if Image.open(pair.mask).width != Image.open(pair.mask).height)
    with pytest.raises(DatasetError, match="they do not belong together"):
        kvasir.read(shown)


# --- what a note says is found in the files


def write_kvasir(root: Path, stems: list[str], *, sizes: list[tuple[int, int]]) -> Path:
    for index, stem in enumerate(stems):
        size = sizes[index % len(sizes)]
        write_pair(root / f"Kvasir-SEG/images/{stem}.jpg", root / f"Kvasir-SEG/masks/{stem}.jpg", size=size)
    return root / "Kvasir-SEG"


ORIGINAL_IDS = [f"cju0qkwl35piu0993l0dew{index:03d}" for index in range(9)] + ["ck2395w2mb4vu07480otsu6tw"]
NATIVE = [(62, 52), (134, 107), (61, 52), (61, 61)]


@pytest.mark.parametrize(
    ("stems", "sizes", "note"),
    [
        (ORIGINAL_IDS, NATIVE, "10 of 1,000"),
        (ORIGINAL_IDS, [(35, 35)], "10 of 1,000, 35 px copy"),
        ([f"train_{index:04d}" for index in range(10)], [(35, 35)], "10 of 1,000, 35 px copy"),
        ([f"polyp {index}" for index in range(10)], [(35, 35)], "other images: 10 of 10 have no name of Kvasir-SEG"),
        ([*ORIGINAL_IDS, "mine"], NATIVE, "other images: 1 of 11 have no name of Kvasir-SEG"),
    ],
    ids=["originals", "originals made small", "the known copy", "somebody's polyps", "one of mine among them"],
)
def test_kvasir_note(make: MakeBenchmark, tmp_path: Path, stems: list[str], sizes: list, note: str) -> None:
    assert make("kvasir", split_rule="carved").splits(write_kvasir(tmp_path, stems, sizes=sizes)).note == note


@pytest.mark.parametrize(
    ("size", "note"),
    [((384, 288), "29 of 612"), ((192, 144), "29 of 612, 192x144 px copy"), ((64, 64), "29 of 612, 64 px copy")],
)
def test_cvc_note(make: MakeBenchmark, tmp_path: Path, size: tuple[int, int], note: str) -> None:
    folder = tmp_path / "CVC-ClinicDB"
    for frame in FIRST_FRAMES:
        write_pair(folder / f"PNG/Original/{frame}.png", folder / f"PNG/Ground Truth/{frame}.png", size=size)
    assert make("cvc612").splits(folder).note == note


def test_masks_without_an_image_are_counted_by_the_rule_and_named_by_the_check(make: MakeBenchmark, tmp_path) -> None:
    folder = write_kvasir(tmp_path, ORIGINAL_IDS, sizes=NATIVE)
    (folder / "images" / f"{ORIGINAL_IDS[3]}.jpg").unlink()
    kvasir = make("kvasir", split_rule="carved")
    splits = kvasir.splits(folder)
    assert splits.rule.endswith(f"; 1 masks without an image left out ({ORIGINAL_IDS[3]}.jpg)")
    assert splits.left_out == (folder / "masks" / f"{ORIGINAL_IDS[3]}.jpg",)
    pairing = check(kvasir, folder, progress=lambda *_: None).verdicts[0]
    assert (pairing.rule, pairing.status, pairing.files) == ("pairing", "warned", (f"masks/{ORIGINAL_IDS[3]}.jpg",))


# --- real files


def test_real_kvasir_originals_are_not_taken_for_a_copy(make: MakeBenchmark, real_data: Path) -> None:
    assert make("kvasir", split_rule="carved").splits(real_data / "kvasir_original_names").note == "5 of 1,000"
