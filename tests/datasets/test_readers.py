"""Every benchmark in every layout is decoded to the classes that were drawn; carved splits are those of every record."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets import samples
from harness.datasets.base import Benchmark, DatasetError, Pair, Splits
from harness.datasets.camo import is_camo
from harness.datasets.cvc612 import FIRST_FRAMES, sequence_of
from harness.datasets.isic2017 import LESIONS_OF_VALIDATION, SAME_LESION
from harness.datasets.readers.folder_benchmark import FolderBenchmark
from harness.datasets.readers.layouts import Layout, resolve_folder
from harness.datasets.readers.splitting import carve, read_list
from tests.datasets.archives import write_archive
from tests.datasets.conftest import CASES, MakeBenchmark

MANIFESTS = Path(__file__).parents[2] / "datasets" / "manifests"


def every(splits: Splits) -> list[Pair]:
    return [*splits.train, *splits.val, *(pair for part in splits.test.values() for pair in part)]


def load(benchmark: Benchmark, root: Path) -> Splits:
    return benchmark.splits(benchmark.locate(root))


@cache
def drawn_classes(name: str) -> dict[str, np.ndarray]:
    count = samples.DEFAULT_IMAGES
    stem = samples.RECIPES[name].stem
    return {stem(index, count): samples.scene(name, index).classes for index in range(count)}


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_layout_is_recognised_and_masks_decode_to_the_classes_drawn(make, sample_of, name: str, layout: str) -> None:
    benchmark = make(name)
    splits = load(benchmark, sample_of(name, layout))
    assert splits.layout == layout
    assert splits.note == "generated sample"
    assert splits.rule
    assert load(make(name), sample_of(name, layout)) == splits
    assert all(splits.parts.values())
    drawn = drawn_classes(name)
    assert sorted(pair.stem for pair in every(splits)) == sorted(drawn), "each image is in one split"
    assert len({pair.image for pair in every(splits)}) == len(drawn)
    seen: set[int] = set()
    for pair in every(splits):
        sample = benchmark.read(pair)
        expected = drawn[pair.stem]
        np.testing.assert_array_equal(sample.mask, expected, err_msg=str(pair))
        assert sample.image.shape == (*expected.shape, 3)
        assert sample.image.dtype == sample.mask.dtype == np.uint8
        seen |= set(np.unique(sample.mask).tolist())
    assert seen == set(range(benchmark.num_classes)), "every class must occur, or its decoding is not shown"


def test_two_candidates_are_an_error_that_names_both(make, tmp_path: Path) -> None:
    first = samples.write_samples("kvasir", tmp_path, images=12, size=48)
    second = write_archive("kvasir", tmp_path, layout="autogluon", images=12, size=48)
    with pytest.raises(DatasetError) as caught:
        make("kvasir").locate(tmp_path)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)
    assert "--datasets kvasir=DIR" in str(caught.value)


def test_a_list_of_other_columns_is_refused(make, tmp_path: Path) -> None:
    folder = write_archive("sbu", tmp_path, layout="autogluon", images=12, size=48)
    (folder / "test.csv").write_text("image,label\n")
    with pytest.raises(DatasetError, match="the test split of SBU is empty"):
        load(make("sbu"), tmp_path)
    (folder / "val.csv").write_text("picture,mask\na.jpg,b.png\n")
    with pytest.raises(DatasetError, match=r"val\.csv has no columns image and label"):
        load(make("sbu"), tmp_path)


def test_a_split_rule_without_its_images_is_refused(make, sample_of, tmp_path: Path) -> None:
    camo, cvc = make("camo", split_rule="camo+cod10k"), make("cvc612", split_rule="pranet")
    with pytest.raises(DatasetError, match="CAMO alone"):
        load(camo, sample_of("camo"))
    with pytest.raises(DatasetError, match="none of its images"):
        cvc.arrange({"all": pairs(["1", "2"])}, root=tmp_path, layout=layout_of(cvc, "original"))
    with pytest.raises(DatasetError, match="none of the layouts"):
        cvc.splits(tmp_path)


def test_two_images_of_one_part_with_one_name_are_refused(make, tmp_path: Path) -> None:
    folder = samples.write_samples("trans10k_v1", tmp_path, images=24, size=40)
    for kind in ("images", "masks"):
        for path in (folder / "validation" / "easy" / kind).iterdir():
            (folder / "validation" / "hard" / kind / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DatasetError, match="two images of val have the stem"):
        load(make("trans10k_v1"), tmp_path)


def test_a_folder_with_images_of_its_own_is_not_stepped_over(tmp_path: Path) -> None:
    (tmp_path / "images" / "images").mkdir(parents=True)
    assert resolve_folder(tmp_path, "images") == tmp_path / "images" / "images"
    Image.new("L", (4, 4)).save(tmp_path / "images" / "a.png")
    assert resolve_folder(tmp_path, "images") == tmp_path / "images"


def test_cod10ks_files_are_known_in_any_case() -> None:
    assert [is_camo(stem) for stem in ("camourflage_00001", "COD10K-CAM-1", "cod10k-cam-1")] == [True, False, False]


def test_sbu_images_published_without_mask_are_left_out_and_the_rule_says_so(make, sample_of) -> None:
    splits = load(make("sbu"), sample_of("sbu"))
    assert splits.rule.endswith("; 2 images without a mask left out"), "as in records made before"
    assert not any(pair.stem.startswith("without_mask") for pair in every(splits))


# --- rules of single benchmarks


def test_cvc_original_with_pranets_frames(make, sample_of) -> None:
    listed = read_list(MANIFESTS / "pranet-cvc612-test.txt")
    assert len(set(listed)) == 62
    assert all(1 <= sequence_of(stem) <= 29 for stem in listed)
    splits = load(make("cvc612", split_rule="pranet"), sample_of("cvc612"))
    present = {pair.stem for pair in every(splits)} & set(listed)
    assert present
    assert {pair.stem for pair in splits.test["test"]} == present


@pytest.mark.parametrize("layout", ["sinet", "autogluon"])
def test_camo_alone_or_with_cod10k(make, tmp_path: Path, layout: str) -> None:
    write_archive("camo", tmp_path, layout)
    for listed in tmp_path.rglob("train.csv"):  # which a layout of folders has not
        header, *rows = listed.read_text().splitlines()
        of_image, of_mask = map(header.split(",").index, ("image", "label"))
        for number, row in enumerate(rows[:4]):
            cells = row.split(",")
            for at in (of_image, of_mask):
                path = listed.parent / cells[at]
                copy = path.with_name(f"COD10K-CAM-{number}{path.suffix}")
                copy.write_bytes(path.read_bytes())
                cells[at] = str(copy.relative_to(listed.parent))
            rows.append(",".join(cells))
        listed.write_text("\n".join([header, *rows]))
    alone, joint = load(make("camo"), tmp_path), load(make("camo", split_rule="camo+cod10k"), tmp_path)
    assert not any(pair.stem.startswith("COD10K") for pair in every(alone))
    assert "COD10K images in train" in joint.rule
    assert len(every(joint)) == len(every(alone)) + 4
    assert joint.test == alone.test


def test_kvasir_lists_with_the_images_make_the_splits(make, tmp_path: Path) -> None:
    folder = samples.write_samples("kvasir", tmp_path, images=12, size=48)
    stems = sorted(path.stem for path in (folder / "images").glob("*.jpg"))
    (folder / "splits").mkdir()
    for split, chosen in (("train", stems[:8]), ("val", stems[8:10]), ("test", stems[10:])):
        (folder / "splits" / f"{split}.txt").write_text("\n".join(chosen) + "\n")
    splits = load(make("kvasir"), tmp_path)
    assert [pair.stem for pair in splits.val] == stems[8:10]
    assert splits.rule == "lists in splits/ (8/2/2)"
    (folder / "splits" / "val.txt").write_text(stems[0] + "\n")
    with pytest.raises(DatasetError, match="take it out"):
        load(make("kvasir"), tmp_path)


def test_a_list_may_begin_with_a_byte_order_mark_and_stems_may_hold_dots(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("# made by hand\nscan.v1\nimages/scan.v2.PNG\nold\\a.jpeg\nplain\n", encoding="utf-8-sig")
    assert read_list(path) == ["scan.v1", "scan.v2", "a", "plain"]
    path.write_text("first\n", encoding="utf-8-sig")
    assert read_list(path) == ["first"]


def test_quirk_mask_255_only_is_a_switch_of_every_binary_benchmark(make, tmp_path: Path, sample_of) -> None:
    for name in ("kvasir", "leaf"):  # JPEG noise erodes, palettes vanish
        released, intended = make(name, mask_255_only=True), make(name)
        pairs = every(load(intended, sample_of(name)))
        assert sum(int(released.read(pair).mask.sum()) for pair in pairs) < sum(
            int(intended.read(pair).mask.sum()) for pair in pairs
        )


# --- real images


@pytest.mark.parametrize(
    ("name", "options", "sizes", "note", "above", "step"),
    [
        ("kvasir", {}, (810, 90, 100), "", 127, 100),
        ("leaf", {}, (411, 59, 118), "", 63, 20),
        ("road", {}, (41, 8, 21), "70 tiles of 39 images", 127, 10),
        ("isic2017", {"split_rule": "val-as-test"}, (1796, 200, 150), "validation as test, 256 px copy", 127, 1800),
        ("cvc612", {}, (479, 69, 64), "", 127, 100),
        ("camo", {}, (101, 11, 61), "173 of 1,250", 127, 50),
        ("sbu", {"split_rule": "carved"}, (35, 5, 10), "50 training pairs, carved", 0, 10),
    ],
)
def test_real_images_are_split_by_groups_and_decoded(make, real_data, name, options, sizes, note, above, step) -> None:
    benchmark = make(name, **options)
    splits = load(benchmark, real_data)
    parts = (splits.train, splits.val, splits.test["test"])
    assert (tuple(map(len, parts)), splits.note) == (sizes, note)
    groups = [{benchmark.group(pair) for pair in part} for part in parts]
    assert sum(map(len, groups)) == len(set().union(*groups))
    for pair in every(splits)[::step]:
        levels = np.asarray(Image.open(pair.mask))
        palette = Image.open(pair.mask).mode == "P"
        drawn = (levels[..., 0] if levels.ndim == 3 else levels) > (0 if palette else above)
        np.testing.assert_array_equal(benchmark.read(pair).mask, drawn)
        assert 0 < drawn.mean() < 1


SEQUENCES = [
    (1, 25), (26, 50), (51, 67), (68, 78), (79, 103), (104, 126), (127, 151), (152, 177), (178, 199), (200, 205),
    (206, 227), (228, 252), (253, 277), (278, 297), (298, 317), (318, 342), (343, 363), (364, 383), (384, 408),
    (409, 428), (429, 447), (448, 466), (467, 478), (479, 503), (504, 528), (529, 546), (547, 571), (572, 591),
    (592, 612),
]  # fmt: skip
"""First and last frame of each video, as published with CVC-ClinicDB."""


def pairs(stems: list[str]) -> tuple[Pair, ...]:
    return tuple(Pair(stem=stem, image=Path(f"{stem}.jpg"), mask=Path(f"{stem}.png")) for stem in stems)


def layout_of(benchmark: Benchmark, name: str) -> Layout:
    assert isinstance(benchmark, FolderBenchmark)
    return next(layout for layout in benchmark.layouts() if layout.name == name)


def digest(part: tuple[Pair, ...]) -> str:
    return hashlib.sha256(" ".join(pair.stem for pair in part).encode()).hexdigest()[:12]


KVASIR = [f"train_{index:04d}" for index in range(800)] + [f"test_{index:04d}" for index in range(200)]
LEAF = [f"{index:05d}" for index in range(588)]
CVC = [str(frame) for frame in range(1, 613)]
CAMO = [f"camourflage_{index:05d}" for index in range(1, 1001)]
SBU = [f"lssd{index:04d}" for index in range(4085)]
ISIC = [f"ISIC_{index:07d}" for index in range(300)]
CAMO_TEST, ISIC_VAL, VAL_AS_TEST = ["camourflage_01001"], ["ISIC_0012127"], {"split_rule": "val-as-test"}
TILES = [f"{10078660 + 15 * image}_15_r{tile}c0" for image in range(41) for tile in range(1 + image % 2)]

WHOLE = [
    ("kvasir", "original", {"all": KVASIR}, {"split_rule": "carved"}, (800, 100, 100), "e448913f5ea7 32f0d25e6b03"),
    ("leaf", "original", {"all": LEAF}, {}, (411, 59, 118), "442e18653a64 9d4df3caabc1"),
    ("leaf", "original", {"all": LEAF[:100]}, {}, (70, 10, 20), "a84815e66f4a 26fa1b68fb4a"),
    ("cvc612", "original", {"all": CVC}, {}, (479, 69, 64), "08a05ad41aa1 bfee7e5d5c70"),
    ("cvc612", "original", {"all": CVC}, {"split_seed": 1}, (479, 64, 69), "7f947c382a16 2ebfa17742f5"),
    ("camo", "original", {"train": CAMO, "test": CAMO_TEST}, {}, (900, 100, 1), "d718d511f129 bffc3506af8d"),
    ("sbu", "original", {"train": SBU, "test": ["x"]}, {}, (3677, 408, 1), "b3a4e8ac5dcd 2d711642b726"),
    ("isic2017", "original", {"train": ISIC, "val": ISIC_VAL}, VAL_AS_TEST, (270, 30, 1), "fbe029d78e1f af6c7a92cd83"),
    ("road", "tiles", {"all": TILES}, {}, (37, 6, 18), "b44c8b03b573 5962f5fdd2d6"),
]


@pytest.mark.parametrize(("name", "layout", "parts", "options", "sizes", "pinned"), WHOLE)
def test_carved_splits_are_those_of_every_record(make: MakeBenchmark, name, layout, parts, options, sizes, pinned):
    benchmark = make(name, **options)
    assert isinstance(benchmark, FolderBenchmark)
    given = {part: pairs(stems) for part, stems in parts.items()}
    train, val, test, rule, *_ = benchmark.arrange(given, root=Path("nowhere"), layout=layout_of(benchmark, layout))
    assert (len(train), len(val), len(test["test"])) == sizes
    assert f"{digest(val)} {digest(test['test'])}" == pinned
    groups = [{benchmark.group(pair) or pair.stem for pair in part} for part in (train, val, test["test"])]
    assert sum(map(len, groups)) == len(set().union(*groups)), "none is on two sides"
    assert f"carved (seed {options.get('split_seed', 0)}, " in rule


def test_the_29_sequences_frame_by_frame() -> None:
    assert tuple(first for first, _ in SEQUENCES) == FIRST_FRAMES
    for number, (first, last) in enumerate(SEQUENCES, 1):
        assert {sequence_of(str(frame)) for frame in range(first, last + 1)} == {number}
    assert sum(last - first + 1 for first, last in SEQUENCES) == 612


def test_frames_beyond_the_sequences_and_sides_with_nothing_left_are_errors() -> None:
    for stem in ("0", "613", "cju0"):
        with pytest.raises(DatasetError, match="numbered 1 to 612"):
            sequence_of(stem)
    with pytest.raises(DatasetError, match="too few"):
        carve(pairs(CVC[:3]), count=3, seed=0)
    with pytest.raises(DatasetError, match="together: 1"):
        carve(pairs(CVC[:3]), count=1, seed=0, group=lambda pair: "one patient")


def test_the_order_of_files_does_not_change_a_split() -> None:
    assert set(carve(pairs(CVC), count=10, seed=0)[1]) == set(carve(pairs(CVC[::-1]), count=10, seed=0)[1])


@pytest.mark.parametrize("seed", range(3))
def test_isic_lesions_are_never_on_two_sides(make: MakeBenchmark, seed: int) -> None:
    isic = make("isic2017", split_rule="val-as-test", split_seed=seed)
    assert isinstance(isic, FolderBenchmark)
    numbers = [*SAME_LESION, *SAME_LESION.values(), *LESIONS_OF_VALIDATION]
    given = {
        "train": pairs([f"ISIC_{number}" for number in numbers]),
        "val": pairs([f"ISIC_{number}" for number in LESIONS_OF_VALIDATION.values()]),
    }
    train, val, test, rule, *_ = isic.arrange(given, root=Path("nowhere"), layout=layout_of(isic, "original"))
    assert "4 training images of tested lesions left out" in rule
    assert len(train) + len(val) == 2 * len(SAME_LESION)
    for part in (train, val):
        stems = {pair.stem.removeprefix("ISIC_") for pair in part}
        assert all((first in stems) is (second in stems) for first, second in SAME_LESION.items())
    assert len(test["test"]) == 4


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_test_split_that_would_stand_in_for_another_is_refused(name: str) -> None:
    with pytest.raises(DatasetError, match=f"cannot be called {name}"):
        Splits(train=(), val=(), test={name: ()}, layout="l", rule="r")
