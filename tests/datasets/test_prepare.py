"""``prepare``: from archives on disk or on a loopback server to a whole folder, or to nothing."""

from __future__ import annotations

import shutil
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from harness.datasets import samples
from harness.datasets.base import DatasetError
from harness.datasets.preparing import prepare as downloading
from harness.datasets.preparing.prepare import prepare
from harness.registry import SEGMENTED
from tests.datasets.archive_server import serve
from tests.datasets.archives import write_archive
from tests.datasets.conftest import benchmark_of, quiet


def packed(name: str, folder: Path) -> Path:
    """An archive of a sample, with the benchmark's own top folder."""
    write_archive(name, folder / "src", images=12, size=40)
    return Path(shutil.make_archive(str(folder / name), "zip", folder / "src"))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return packed("kvasir", tmp_path)


@pytest.fixture
def large_archive(tmp_path: Path) -> Path:
    """Several times the half megabyte in which the download is written."""
    samples.write_samples("kvasir", tmp_path / "large", images=12, size=40)
    (tmp_path / "large" / "video.bin").write_bytes(np.random.default_rng(0).bytes(3 << 20))
    return Path(shutil.make_archive(str(tmp_path / "large"), "zip", tmp_path / "large"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def hidden_only(root: Path) -> bool:
    """Nothing in the data root that could be taken for a benchmark, nothing half-made."""
    return not root.exists() or {path.name for path in root.iterdir() if path.suffix != ".lock"} <= {downloading.FOLDER}


@pytest.mark.parametrize("name", SEGMENTED)
def test_every_benchmark_is_prepared_from_an_archive(tmp_path: Path, root: Path, name: str) -> None:
    folder, splits = prepare(benchmark_of(name), [str(packed(name, tmp_path))], root, progress=quiet)
    assert splits.layout == "original"
    assert benchmark_of(name).locate(root) == folder
    assert sum(map(len, splits.parts.values())) == 12
    assert not [path for path in root.iterdir() if path.is_dir() and path.name.startswith(".unpacking")]


def test_several_archives_make_one_benchmark(tmp_path: Path, root: Path) -> None:
    source = samples.write_samples("isic2017", tmp_path / "src", images=12, size=40)
    parts = [
        shutil.make_archive(str(tmp_path / part.name), "zip", source, part.name)
        for part in sorted(source.iterdir())
        if part.is_dir()
    ]
    assert len(parts) == 6
    for part in parts:
        with zipfile.ZipFile(part, "a") as opened:
            opened.writestr("README.txt", f"about {part}")
    _, splits = prepare(benchmark_of("isic2017"), parts, root, progress=quiet)
    assert sum(map(len, splits.parts.values())) == 12


def test_archive_whose_folders_have_other_names(tmp_path: Path, root: Path) -> None:
    samples.write_samples("leaf", tmp_path / "src", images=12, size=40).rename(tmp_path / "src" / "archive (3)")
    made = shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "src")
    prepare(benchmark_of("leaf"), [made], root, progress=quiet)
    assert benchmark_of("leaf").locate(root) == root / "leaf_disease"


def test_an_archive_of_something_else_is_refused(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DatasetError, match="one SBU"):
        prepare(benchmark_of("sbu"), [str(packed("leaf", tmp_path))], root, progress=quiet)
    assert hidden_only(root)


# --- downloading


def test_a_benchmark_that_is_there_is_not_downloaded(archive: Path, root: Path) -> None:
    with serve(archive) as served:
        prepare(benchmark_of("kvasir"), [served.url], root, progress=quiet)
        with pytest.raises(DatasetError, match="already there"):
            prepare(benchmark_of("kvasir"), [served.url], root, progress=quiet)
    assert len(served.requests) == 1


def offsets(requests: list[str]) -> list[int]:
    return [int(requested.removeprefix("bytes=").removesuffix("-")) for requested in requests if requested]


def test_cut_connections_are_resumed_within_one_call(large_archive: Path, root: Path) -> None:
    with serve(large_archive, cuts=[1_200_000, 1_100_000]) as served:
        prepare(benchmark_of("kvasir"), [served.url], root, progress=quiet)
    first, second = offsets(served.requests)
    assert 500_000 < first <= 1_200_000
    assert first + 500_000 < second <= first + 1_100_000


def test_download_goes_on_in_the_next_call_where_it_stopped(large_archive: Path, root: Path, monkeypatch) -> None:
    monkeypatch.setattr(downloading, "_RETRIES", 0)
    seen: list[int] = []

    def progress(what: str, done: int, total: int | None) -> None:
        if what == downloading.file_name(served.url):
            seen.append(done)

    with serve(large_archive, cuts=[1_200_000]) as served:
        with pytest.raises(DatasetError, match="run the command again to resume"):
            prepare(benchmark_of("kvasir"), [served.url], root, progress=progress)
        assert hidden_only(root)
        kept = max(seen)
        prepare(benchmark_of("kvasir"), [served.url], root, progress=progress)
    assert offsets(served.requests) == [kept]
    assert seen == sorted(seen), "progress counts on from what was there"
    assert seen[-1] == large_archive.stat().st_size


def test_two_calls_never_append_to_one_download(archive: Path, root: Path) -> None:
    root.mkdir()
    with (
        serve(archive) as served,
        FileLock(root / ".preparing.lock"),
        pytest.raises(DatasetError, match="another process"),
    ):
        prepare(benchmark_of("kvasir"), [served.url], root, progress=quiet)
    assert not served.requests


def test_unreachable_address_is_one_line(root: Path, archive: Path, monkeypatch) -> None:
    monkeypatch.setattr(downloading, "_RETRIES", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/a.zip"
    with serve(archive) as served:
        absent = served.url.replace(archive.name, "a.zip")
        for url in (closed, absent):
            with pytest.raises(DatasetError, match=r"a\.zip did not download") as caught:
                prepare(benchmark_of("kvasir"), [url], root, progress=quiet)
            assert "\n" not in str(caught.value)
    assert hidden_only(root)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("{}.absent", "no archive"),
        ("{}/..", "is a folder, not an archive"),
        ("https://[::1", "not an address"),
    ],
)
def test_an_invalid_source_is_one_line(root: Path, tmp_path: Path, source: str, word: str) -> None:
    (tmp_path / "a.zip").mkdir()
    with pytest.raises(DatasetError, match=word):
        prepare(benchmark_of("kvasir"), [source.format(tmp_path / "a.zip")], root, progress=quiet)
    assert hidden_only(root)


# --- whole or not at all


def test_damaged_download_leaves_nothing_and_starts_over(archive: Path, root: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "served" / archive.name
    damaged.parent.mkdir()
    content = bytearray(archive.read_bytes())
    content[200:260] = bytes(60)
    damaged.write_bytes(content)
    with serve(damaged) as served:
        with pytest.raises(DatasetError, match="cannot be unpacked"):
            prepare(benchmark_of("kvasir"), [served.url], root, progress=quiet)
        assert hidden_only(root)
        served.content = archive.read_bytes()
        prepare(benchmark_of("kvasir"), [served.url], root, progress=quiet)
    assert len(served.requests) == 2


def test_archive_without_some_masks_leaves_nothing(root: Path, tmp_path: Path) -> None:
    (samples.write_samples("cvc612", tmp_path / "src", images=12, size=40) / "Ground Truth" / "1.tif").unlink()
    made = shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "src")
    with pytest.raises(DatasetError, match="have no mask"):
        prepare(benchmark_of("cvc612"), [made], root, progress=quiet)
    assert hidden_only(root)


def test_what_a_killed_call_left_is_no_benchmark_and_goes_with_the_next_call(archive: Path, root: Path) -> None:
    samples.write_samples("kvasir", root / ".unpacking-kvasir", images=12, size=40)
    (root / ".unpacking-kvasir" / "Kvasir-SEG" / "images" / "begun.jpg").touch()
    with pytest.raises(DatasetError, match="no Kvasir-SEG"):
        benchmark_of("kvasir").locate(root)
    folder, _ = prepare(benchmark_of("kvasir"), [str(archive)], root, progress=quiet)
    assert not (root / ".unpacking-kvasir").exists()
    assert len(list((folder / "images").glob("*.jpg"))) == 12
