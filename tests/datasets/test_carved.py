"""Carved splits of whole benchmarks, pinned by stems alone: a change here changes what every recorded run was tested on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harness.datasets.base import Benchmark, DatasetError, Pair
from harness.datasets.cvc612 import FIRST_FRAMES, sequence_of
from harness.datasets.reading.folder_benchmark import FolderBenchmark
from harness.datasets.reading.layouts import Layout
from harness.datasets.reading.splitting import carve
from tests.datasets.conftest import MakeBenchmark

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
    ("leaf", "original", {"all": LEAF}, {}, (411, 59, 118), "2e86c0548006 a70f0683df91"),
    ("leaf", "original", {"all": LEAF[:100]}, {}, (70, 10, 20), "7560b25601e4 26fa1b68fb4a"),
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
    train, val, test, _ = benchmark.arrange(given, root=Path("nowhere"), layout=layout_of(benchmark, layout))
    assert (len(train), len(val), len(test["test"])) == sizes
    assert f"{digest(val)} {digest(test['test'])}" == pinned
    assert not {pair.stem for pair in train} & {pair.stem for pair in (*val, *test["test"])}


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


def test_the_order_of_files_is_no_part_of_a_split() -> None:
    assert set(carve(pairs(CVC), count=10, seed=0)[1]) == set(carve(pairs(CVC[::-1]), count=10, seed=0)[1])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("rule", ["default", "sequences"])
def test_no_sequence_is_on_two_sides_of_a_carved_split(make: MakeBenchmark, rule: str, seed: int) -> None:
    cvc = make("cvc612", split_rule=rule, split_seed=seed)
    assert isinstance(cvc, FolderBenchmark)
    train, val, test, _ = cvc.arrange({"all": pairs(CVC)}, root=Path("nowhere"), layout=layout_of(cvc, "original"))
    sides = [
        {
            next(number for number, (first, last) in enumerate(SEQUENCES) if first <= int(pair.stem) <= last)
            for pair in part
        }
        for part in (train, val, test["test"])
    ]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 29


SAME_LESION = [
    ("0000164", "0014795"), ("0000165", "0014788"), ("0000177", "0014657"), ("0000204", "0014748"),
    ("0000206", "0014739"), ("0000222", "0014846"), ("0000223", "0014818"), ("0000225", "0014778"),
    ("0000229", "0014771"), ("0000240", "0009998"), ("0000423", "0010571"), ("0012290", "0013594"),
    ("0012672", "0012673"), ("0012756", "0013184"),
]  # fmt: skip
TESTED_TOO = [("0012970", "0012127"), ("0000171", "0015124"), ("0000157", "0014946"), ("0000215", "0015313")]
"""(training, validation)"""


@pytest.mark.parametrize("seed", range(40))
def test_isic_lesions_are_never_on_two_sides(make: MakeBenchmark, seed: int) -> None:
    isic = make("isic2017", split_rule="val-as-test", split_seed=seed)
    assert isinstance(isic, FolderBenchmark)
    numbers = [number for pair in SAME_LESION for number in pair] + [number for number, _ in TESTED_TOO]
    given = {
        "train": pairs([f"ISIC_{number}" for number in numbers]),
        "val": pairs([f"ISIC_{number}" for _, number in TESTED_TOO]),
    }
    train, val, test, rule = isic.arrange(given, root=Path("nowhere"), layout=layout_of(isic, "original"))
    assert "4 training images of tested lesions left out" in rule
    assert len(train) + len(val) == 2 * len(SAME_LESION)
    for part in (train, val):
        stems = {pair.stem.removeprefix("ISIC_") for pair in part}
        assert all((first in stems) is (second in stems) for first, second in SAME_LESION)
    assert len(test["test"]) == 4
