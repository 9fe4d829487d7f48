"""The joint polyp protocol: PraNet's lists, whatever layout its images come in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets.base import DataOptions, DatasetError, Splits
from harness.datasets.cvc612 import sequence_of
from harness.datasets.polyp import Polyp
from harness.datasets.preparing.checking import check, groups_apart
from harness.datasets.readers.splitting import committed
from harness.registry import BENCHMARKS, is_own
from tests.datasets.conftest import quiet

KVASIR = sorted(committed("pranet-kvasir-test"))[:4] + [f"cju0qkwl35piu0993l0dew{index:03d}" for index in range(20)]
CVC = [str(frame) for frame in (1, 14, 26, 51, 68, 79, 100, 104, 127, 152, 178, 180, 181, 200, 206)]
TESTED = {"kvasir": set(KVASIR[:4]), "cvc612": {"14", "100", "181"}}


def write(images: Path, masks: Path, stems: list[str]) -> None:
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        near = stem.replace("181", "180")  # two frames of one second
        pixels = np.random.default_rng([*near.encode()]).integers(0, 255, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 30)).save(images / f"{stem}.png")
        mask = np.zeros((30, 40), np.uint8)
        mask[5:15, 5 : 20 + (stem == "181")] = 255
        Image.fromarray(mask).save(masks / f"{stem}.png")


def original(root: Path) -> None:
    write(root / "Kvasir-SEG/images", root / "Kvasir-SEG/masks", KVASIR)
    write(root / "CVC-ClinicDB/Original", root / "CVC-ClinicDB/Ground Truth", CVC)


def kaggle(root: Path) -> None:
    original(root)
    (root / "CVC-ClinicDB/PNG").mkdir()
    for name in ("Original", "Ground Truth"):
        (root / "CVC-ClinicDB" / name).rename(root / "CVC-ClinicDB/PNG" / name)


def pranet(root: Path) -> None:
    tested = [stem for stems in TESTED.values() for stem in stems]
    trained = [stem for stem in KVASIR + CVC if stem not in tested]
    write(root / "PraNet/TrainDataset/image", root / "PraNet/TrainDataset/masks", trained)
    for name, folder in (("kvasir", "Kvasir"), ("cvc612", "CVC-ClinicDB")):
        of_set = root / "PraNet/TestDataset" / folder
        write(of_set / "images", of_set / "masks", sorted(TESTED[name]))


def autogluon(root: Path) -> None:
    pranet(root)
    (root / "PraNet").rename(root / "polyp")
    folders = {"train": "TrainDataset/image", "test_Kvasir": "TestDataset/Kvasir/images"}
    for name, folder in {**folders, "test_CVC-ClinicDB": "TestDataset/CVC-ClinicDB/images"}.items():
        images = sorted((root / "polyp" / folder).iterdir())
        rows = [f"{folder}/{path.name},{Path(folder).parent}/masks/{path.name}" for path in images]
        (root / "polyp" / f"{name}.csv").write_text("\n".join(["image,label", *rows]))


def opened(root: Path) -> tuple[Polyp, Splits, Path]:
    benchmark = Polyp()
    where = benchmark.locate(root)
    return benchmark, benchmark.splits(where), where


def stems(splits: Splits) -> dict[str, set[str]]:
    return {name: {pair.stem for pair in pairs} for name, pairs in splits.parts.items()}


@pytest.mark.parametrize("layout", [original, kaggle, pranet, autogluon])
def test_every_layout_is_split_by_pranets_lists(tmp_path: Path, layout) -> None:
    layout(tmp_path)
    _, splits, _ = opened(tmp_path)
    original(tmp_path / "again")
    assert stems(splits) == stems(opened(tmp_path / "again")[1])
    assert {name: stems(splits)[name] for name in splits.test} == TESTED
    assert {sequence_of(s) for s in stems(splits)["val"] if s.isdigit()}.isdisjoint(
        {sequence_of(s) for s in stems(splits)["train"] if s.isdigit()}
    )
    assert "kvasir: PraNet's test images by stem (4 of its 100); val carved (seed 0, 2 of 20" in splits.rule
    assert "cvc612: PraNet's test images by stem (3 of its 62)" in splits.rule
    assert splits.note == "39 of 1,612"


def test_further_sets_are_tested_where_they_are_and_change_nothing_else(tmp_path: Path) -> None:
    original(tmp_path)
    before = stems(opened(tmp_path)[1])
    write(tmp_path / "TestDataset/CVC-ColonDB/images", tmp_path / "TestDataset/CVC-ColonDB/masks", ["1", "2"])
    write(tmp_path / "CVC-300/images", tmp_path / "CVC-300/masks", ["152", "700"])
    benchmark, splits, where = opened(tmp_path)
    assert stems(splits) == {**before, "colondb": {"colondb_1", "colondb_2"}, "cvc300": {"cvc300_152", "cvc300_700"}}
    assert splits.rule.endswith("; colondb: 2 of 380; cvc300: 2 of 60")
    assert splits.note == "39 of 1,612"
    assert not any("cvc300" in line for line in groups_apart(benchmark, splits, where))


def test_frames_of_one_sequence_on_two_sides_are_warned_of_and_do_not_fail(tmp_path: Path) -> None:
    kaggle(tmp_path)
    benchmark, splits, where = opened(tmp_path)
    (line,) = groups_apart(benchmark, splits, where)
    assert "3 of 35 groups have images in several splits, 3 test images among them" in line
    found = {verdict.rule: verdict.status for verdict in check(benchmark, where, progress=quiet).verdicts}
    assert (found["groups across splits"], found["exact copies across splits"]) == ("warned", "warned")
    assert "failed" not in found.values()


def test_images_under_other_names_and_another_split_rule_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "Kvasir-SEG/images", tmp_path / "Kvasir-SEG/masks", ["train_0001", "train_0002"])
    write(tmp_path / "CVC-ClinicDB/Original", tmp_path / "CVC-ClinicDB/Ground Truth", CVC)
    with pytest.raises(DatasetError, match="published names"):
        opened(tmp_path)
    with pytest.raises(DatasetError, match="split_rule"):
        Polyp(DataOptions(split_rule="carved"))


def test_all_leaves_it_out_and_its_name_is_not_that_of_own_data() -> None:
    assert BENCHMARKS.get("polyp") is Polyp
    assert "polyp" not in BENCHMARKS.names()
    assert len(BENCHMARKS.names()) >= 9
    assert not is_own("polyp")


def test_real_images_have_pranets_numbers_and_its_62_frames_touch_26_sequences(real_data: Path) -> None:
    benchmark, splits, where = opened(real_data)
    assert {name: len(pairs) for name, pairs in splits.parts.items()} == {
        "train": 1304, "val": 146, "kvasir": 100, "cvc612": 62,
    }  # fmt: skip
    assert splits.note == ""
    (line,) = groups_apart(benchmark, splits, where)
    assert "26 of 1029 groups have images in several splits, 62 test images among them" in line
