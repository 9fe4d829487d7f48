"""The generator is deterministic and quick, and refuses what it cannot do."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets import samples
from harness.datasets.base import DatasetError
from harness.registry import SEGMENTED


def _digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", list(SEGMENTED))
def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.setattr(samples, "scene", inspect.unwrap(samples.scene))  # drawn twice indeed
    first, again, other = (
        _digest(samples.write_samples(name, tmp_path / folder, images=12, size=48, seed=seed))
        for folder, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first != other


def test_images_vary_in_size_and_some_are_odd(tmp_path: Path) -> None:
    folder = samples.write_samples("kvasir", tmp_path)
    sizes = {Image.open(path).size for path in (folder / "images").glob("*.jpg")}
    assert len(sizes) >= 4
    assert any(width % 2 or height % 2 for width, height in sizes)
    assert any(width > height for width, height in sizes)
    assert any(width < height for width, height in sizes)


@pytest.mark.parametrize("name", list(SEGMENTED))
def test_colour_tells_the_classes(name: str) -> None:
    """Nearest class colour, learnt on one half of the scenes, finds the classes of the other half."""
    scenes = [samples.scene(name, index) for index in range(36)]
    pixels = [
        (np.concatenate([s.image.reshape(-1, 3) for s in part]), np.concatenate([s.classes.ravel() for s in part]))
        for part in (scenes[::2], scenes[1::2])
    ]
    (train, train_classes), (test, test_classes) = pixels
    known = np.unique(train_classes)
    centres = np.stack([train[train_classes == index].mean(axis=0) for index in known])
    nearest = known[((test[:, None, :] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)]
    assert (nearest == test_classes).mean() > 0.85


def test_unknown_name_layout_and_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="choose from kvasir"):
        samples.write_samples("pets", tmp_path)
    with pytest.raises(DatasetError, match=r"no layout 'kagle' .*kaggle"):
        samples.write_samples("cvc612", tmp_path, layout="kagle")
    with pytest.raises(DatasetError, match="at least 12"):
        samples.write_samples("cvc612", tmp_path, images=3)
    assert not list(tmp_path.iterdir())


def test_same_sample_is_kept_and_another_replaces_it_whole(tmp_path: Path) -> None:
    folder = samples.write_samples("kvasir", tmp_path, images=24, size=48)
    before = (folder / "images").stat().st_mtime_ns
    samples.write_samples("kvasir", tmp_path, images=24, size=48)
    assert (folder / "images").stat().st_mtime_ns == before
    samples.write_samples("kvasir", tmp_path, images=12, size=48)
    assert len(list((folder / "images").glob("*.jpg"))) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["Kvasir-SEG"]


def test_other_data_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "Kvasir-SEG").mkdir()
    (tmp_path / "Kvasir-SEG" / "mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="no generated sample"):
        samples.write_samples("kvasir", tmp_path)
    assert [path.name for path in (tmp_path / "Kvasir-SEG").iterdir()] == ["mine.txt"]
    samples.write_samples("cvc612", tmp_path, layout="pranet", images=12, size=48)
    with pytest.raises(DatasetError, match="holds another sample"):
        samples.write_samples("kvasir", tmp_path, layout="pranet", images=12, size=48)


@pytest.mark.parametrize("file", ["polyp/notes.txt", "polyp/polyp/train_images/mine.png", "changed"])
def test_a_sample_is_not_replaced_with_what_somebody_added_or_changed(tmp_path: Path, file: str) -> None:
    def write(images: int) -> Path:
        return samples.write_samples("kvasir", tmp_path, layout="autogluon", images=images, size=48)

    first = next((write(12) / "train_images").glob("*.png"))
    path = first if file == "changed" else tmp_path / file
    path.write_text("mine")
    with pytest.raises(DatasetError, match=path.name):
        write(24)
    assert path.read_text() == "mine"
    path.unlink()
    write(24)  # what is gone was nobody's work
    assert len(list((tmp_path / "polyp" / "polyp" / "train_images").glob("cju*.png"))) > 10


def test_a_sample_that_failed_half_way_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full_disk(*arguments, **options) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples, "add_extras", full_disk)
    with pytest.raises(OSError, match="No space left"):
        samples.write_samples("kvasir", tmp_path, images=12, size=48)
    assert not list(tmp_path.iterdir())
