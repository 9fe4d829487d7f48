"""``check`` passes on what is whole and finds each fault that is put in."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from harness.datasets import samples
from harness.datasets.base import Pair
from harness.datasets.preparing.checking import Check, check
from harness.datasets.preparing.fingerprints import fingerprint_pair, near_pairs
from harness.registry import SEGMENTED
from tests.datasets.conftest import benchmark_of, quiet


def judged(name: str, root: Path, **options) -> Check:
    benchmark = benchmark_of(name, **options)
    return check(benchmark, benchmark.locate(root), progress=quiet)


def status(checked: Check) -> dict[str, str]:
    return {verdict.rule: verdict.status for verdict in checked.verdicts}


def message_of(checked: Check, rule: str) -> str:
    return next(verdict.message for verdict in checked.verdicts if verdict.rule == rule)


def failed(checked: Check) -> set[str]:
    return {rule for rule, verdict in status(checked).items() if verdict == "failed"}


@pytest.fixture
def road(tmp_path: Path) -> Path:
    """Official splits, so that a fault can be put into a split that is known."""
    return samples.write_samples("road", tmp_path, images=24, size=64)


def images(folder: Path, split: str) -> list[Path]:
    return sorted((folder / split / "sat").glob("*.tiff"))


def mask_of(image: Path) -> Path:
    return image.parent.parent / "map" / f"{image.stem}.tif"


def add(folder: Path, split: str, stem: str, image: Image.Image, mask: Path) -> None:
    image.save(folder / split / "sat" / f"{stem}.tiff")
    shutil.copy(mask, folder / split / "map" / f"{stem}.tif")


@pytest.mark.parametrize("name", list(SEGMENTED))
def test_samples_pass_and_are_said_to_be_samples(sample_of, name: str) -> None:
    checked = judged(name, sample_of(name))
    assert not failed(checked)
    assert checked.passed
    assert status(checked)["counts"] == "warned"


def test_published_sizes_are_compared_split_by_split(road: Path, tmp_path: Path) -> None:
    (road / ".generated-sample").unlink()
    checked = judged("road", tmp_path)
    assert status(checked)["counts"] == "warned"  # a part is no fault: tables say so
    assert checked.passed
    assert all(size in message_of(checked, "counts") for size in ("of 1,108", "of 14", "of 49"))


def test_more_images_than_were_published_fail(road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (road / ".generated-sample").unlink()
    monkeypatch.setattr(type(benchmark_of("road")), "published_sizes", {"train": 1108, "val": 14, "test": 1})
    assert failed(judged("road", tmp_path)) == {"counts"}
    sizes = {
        split: len(images(road, folder)) for split, folder in (("train", "train"), ("val", "valid"), ("test", "test"))
    }
    monkeypatch.setattr(type(benchmark_of("road")), "published_sizes", sizes)
    assert "all that this split rule takes: train " in message_of(judged("road", tmp_path), "counts")


def test_unreadable_file_and_unexpected_value_fail_and_are_named(road: Path, tmp_path: Path) -> None:
    first, second = images(road, "train")[:2]
    first.write_bytes(b"no image")
    Image.fromarray(np.repeat(np.array([[0, 100, 255, 255]], np.uint8), 64, 0).repeat(16, 1)).save(mask_of(second))
    checked = judged("road", tmp_path)
    assert failed(checked) == {"readable"}
    verdict = next(verdict for verdict in checked.verdicts if verdict.rule == "readable")
    assert set(verdict.files) == {f"train/sat/{first.name}", f"train/sat/{second.name}"}
    assert verdict.message.startswith("2 pairs")


def test_inverted_masks_fail(road: Path, tmp_path: Path) -> None:
    for path in road.glob("*/map/*.tif"):
        ImageOps.invert(Image.open(path).convert("L")).save(path)
    assert failed(judged("road", tmp_path)) == {"mask polarity"}


@pytest.mark.parametrize("kind", ["large objects", "thick frames"])
def test_large_objects_and_frames_are_not_taken_for_inverted_masks(road: Path, tmp_path: Path, kind: str) -> None:
    """Most of the picture, or most of its border, is not both."""
    for path in road.glob("*/map/*.tif"):
        mask = np.zeros_like(np.asarray(Image.open(path).convert("L")))
        if kind == "large objects":
            mask[4:-4, 4:-4] = 255
        else:
            mask[:3], mask[-3:], mask[:, :3], mask[:, -3:] = 255, 255, 255, 255
        Image.fromarray(mask).save(path)
    assert not failed(judged("road", tmp_path))


def test_exact_copy_in_another_split_and_format_fails(road: Path, tmp_path: Path) -> None:
    source = images(road, "test")[0]
    add(road, "train", "copy", Image.open(source), mask_of(source))
    Image.open(source).save(road / "train" / "sat" / "copy.png")
    (road / "train" / "sat" / "copy.tiff").unlink()
    checked = judged("road", tmp_path)
    assert failed(checked) == {"exact copies across splits"}
    verdict = next(verdict for verdict in checked.verdicts if verdict.status == "failed")
    assert verdict.files == (f"train: train/sat/copy.png = test: test/sat/{source.name}",)


@pytest.mark.parametrize(
    ("change", "of", "to"),
    [
        ("mirrored", "test", "train"),
        ("scaled", "test", "train"),
        ("compressed", "val", "train"),
        ("scaled", "test", "val"),
    ],
)
def test_near_copy_across_splits_fails(road: Path, tmp_path: Path, change: str, of: str, to: str) -> None:
    of, to = (next(road.glob(f"{split}*")).name for split in (of, to))
    source = images(road, of)[1]
    image: Image.Image = Image.open(source)
    mask: Image.Image = Image.open(mask_of(source))
    if change == "mirrored":
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    if change == "scaled":
        image, mask = image.resize((100, 100)), mask.resize((100, 100), Image.Resampling.NEAREST)
    image.save(road / to / "sat" / "copy.jpg", quality=60)
    mask.save(road / to / "map" / "copy.tif")
    assert failed(judged("road", tmp_path)) == {"near copies across splits"}


def test_different_scenes_of_one_kind_are_not_taken_for_copies(tmp_path: Path) -> None:
    samples.write_samples("isic2017", tmp_path, images=60, size=48)
    checked = judged("isic2017", tmp_path)
    assert status(checked)["near copies across splits"] == status(checked)["near copies within a split"] == "passed"


def test_never_seen_class_fails(tmp_path: Path) -> None:
    for path in samples.write_samples("trans10k_v2", tmp_path, images=24, size=48).glob("*/masks_12/*.png"):
        classes = np.array(Image.open(path))
        classes[classes == 7] = 0
        Image.fromarray(classes).save(path)
    checked = judged("trans10k_v2", tmp_path)
    assert "classes" in failed(checked)
    assert "cup" in message_of(checked, "classes").partition("never in a mask: ")[2]


def test_flat_pictures_are_not_taken_for_copies(tmp_path: Path) -> None:
    benchmark = benchmark_of("leaf")
    prints = []
    for index, level in enumerate((120, 121)):
        image, mask = tmp_path / f"{index}.png", tmp_path / f"{index}_mask.png"
        Image.fromarray(np.full((40, 40, 3), level, np.uint8)).save(image)
        Image.fromarray(np.full((40, 40, 3), (3, 0, 0), np.uint8)).save(mask)
        prints.append(fingerprint_pair(benchmark, "train", Pair(stem=image.stem, image=image, mask=mask)))
    assert not near_pairs(prints)
    assert prints[0].values == (1,)  # the mean of a coloured mask's channels


@pytest.mark.slow
def test_the_whole_of_kvasir_passes_within_two_minutes_of_processor_time(real_data: Path) -> None:
    """Also a finding: three pairs of near copies, each within the training part."""
    benchmark = benchmark_of("kvasir")
    start = time.process_time()
    checked = check(benchmark, benchmark.locate(real_data), progress=quiet)
    assert time.process_time() - start < 120
    assert failed(checked) == set()
    (verdict,) = (verdict for verdict in checked.verdicts if verdict.rule == "near copies within a split")
    assert (verdict.status, len(verdict.files)) == ("warned", 3)
    assert status(checked)["near copies across splits"] == "passed"
