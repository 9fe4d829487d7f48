"""Hostile archives are refused, and nothing is ever written outside the target."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.datasets.base import DatasetError
from harness.datasets.preparing import unpacking
from harness.datasets.preparing.unpacking import unpack
from tests.datasets.conftest import quiet


def packed(path: Path, members: dict[str, bytes], *, links: dict[str, str] | None = None) -> Path:
    """As zip or tar, compressed as the name says; links in a zip alone."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
            for name, target in (links or {}).items():
                info = zipfile.ZipInfo(name)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, target)
        return path
    return tarred(path, {member(name): content for name, content in members.items()})


def tarred(path: Path, members: dict[tarfile.TarInfo, bytes]) -> Path:
    mode: Any = f"w:{path.suffix.removeprefix('.').replace('tar', '')}"
    with tarfile.open(path, mode) as archive:
        for info, content in members.items():
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def outside(tmp_path: Path) -> set[str]:
    return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if "target" not in path.parts}


LEAD_OUT = ("../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "C:evil", "\\\\host\\share\\evil")


@pytest.mark.parametrize(
    ("content", "links", "word"),
    [
        *(({"fine.txt": b"x", name: b"evil"}, {}, "leads out of the folder") for name in LEAD_OUT),
        ({"fine.txt": b"x"}, {"images": "/etc"}, "a link or a device"),
        ({"a.txt": b"1", "A.txt": b"2"}, {}, "twice"),
    ],
)
def test_zip_members_that_lead_out_links_and_names_twice_are_refused(tmp_path: Path, content, links, word) -> None:
    archive = packed(tmp_path / "a.zip", content, links=links)
    before = outside(tmp_path)
    with pytest.raises(DatasetError, match=word):
        unpack(archive, tmp_path / "target", progress=quiet)
    assert outside(tmp_path) == before
    assert not list((tmp_path / "target").iterdir()), "names are judged before anything is written"


def test_folders_of_a_zip_may_end_with_a_backslash(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip", {"set\\": b"", "set\\images\\": b"", "set\\images\\a.png": b"x"})
    assert unpack(archive, tmp_path / "target", progress=quiet) == 1
    assert (tmp_path / "target/set/images/a.png").read_bytes() == b"x"


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_second_archive_may_repeat_a_readme_and_no_data(tmp_path: Path, kind: str) -> None:
    first = packed(tmp_path / f"first.{kind}", {"README.txt": b"one", "a/1.png": b"x", "train.csv": b"image"})
    second = packed(tmp_path / f"second.{kind}", {"README.txt": b"two", "a/2.png": b"y"})
    for archive in (first, second):
        unpack(archive, tmp_path / "target", progress=quiet)
    for name, content in (("a/2.png", b"yy"), ("a/2.png", b""), ("train.csv", b"label")):
        other = packed(tmp_path / f"other.{kind}", {name: content})
        with pytest.raises(DatasetError, match=f"other.* and .* both hold {Path(name).name}"):
            unpack(other, tmp_path / "target", progress=quiet)
    files = {path.name: path.read_bytes() for path in (tmp_path / "target").rglob("*") if path.is_file()}
    assert files == {"README.txt": b"one", "1.png": b"x", "2.png": b"y", "train.csv": b"image"}


@pytest.mark.parametrize(
    "info",
    [
        member("../evil.txt"),
        member("link", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("link", kind=tarfile.SYMTYPE, link="inside.txt"),
        member("link", kind=tarfile.LNKTYPE, link="/etc/passwd"),
        member("device", kind=tarfile.CHRTYPE),
        member("pipe", kind=tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}->{info.linkname}",
)
def test_tar_members_that_lead_out_links_and_devices_are_refused(tmp_path: Path, info: tarfile.TarInfo) -> None:
    archive = tarred(tmp_path / "a.tar.gz", {member("inside.txt"): b"x", info: b""})
    before = outside(tmp_path)
    with pytest.raises(DatasetError, match=r"a\.tar\.gz"):
        unpack(archive, tmp_path / "target", progress=quiet)
    assert outside(tmp_path) == before
    assert not any(path.is_symlink() for path in (tmp_path / "target").rglob("*"))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_are_refused_by_ratio_by_size_and_by_count(tmp_path: Path, kind: str, monkeypatch) -> None:
    zeros = bytes(8 << 20)
    many = {f"{index}.txt": b"" for index in range(30)}
    small = {f"{index}.txt": np.random.default_rng(index).bytes(1000) for index in range(50)}

    def limited(members: int = 500, ratio_from: int = 1 << 28, free: int = 1 << 40) -> None:
        monkeypatch.setattr(unpacking, "MOST_MEMBERS", members)
        monkeypatch.setattr(unpacking, "RATIO_FROM", ratio_from)
        monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    for content, limits, words in (
        ({"zeros": zeros}, {"ratio_from": 1 << 20}, "times its size"),
        ({"zeros": zeros}, {"free": 1 << 20}, "the limit"),
        (many, {"members": 20}, "more than 20 files"),
        (small, {"free": 20_000}, "more than 18000 bytes, the limit"),
    ):
        limited(**limits)
        archive = packed(tmp_path / f"a.{kind}", content)
        with pytest.raises(DatasetError, match=words):
            unpack(archive, tmp_path / "target" / words.replace(" ", ""), progress=quiet)
        assert sum(path.stat().st_size for path in (tmp_path / "target").rglob("*") if path.is_file()) <= 1 << 20
    limited(free=60_000)
    assert unpack(archive, tmp_path / "whole", progress=quiet) == 50


def test_zip_whose_header_lies_about_the_size_is_refused(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip", {"zeros": bytes(4 << 20)})
    content = archive.read_bytes()
    size = (4 << 20).to_bytes(4, "little")
    assert content.count(size) == 2
    archive.write_bytes(content.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(DatasetError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "target", progress=quiet)


def test_protected_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip", {"a.txt": b"1" * 50})
    content = bytearray(archive.read_bytes())
    content[6] |= 1  # the local header's flag: encrypted
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match="password"):
        unpack(archive, tmp_path / "target", progress=quiet)
    other = tmp_path / "a.rar"
    other.write_bytes(b"Rar!\x1a\x07\x00" + bytes(100))
    with pytest.raises(DatasetError, match="as zip or tar"):
        unpack(other, tmp_path / "target", progress=quiet)


def unpacked(archive: Path, target: Path) -> dict[str, bytes] | None:
    """What came out; None where it was refused in one line."""
    try:
        unpack(archive, target, progress=quiet)
    except DatasetError:
        return None
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("damage", ["flipped", "zeroed", "cut"])
def test_damaged_archives_are_refused_or_harmless(tmp_path: Path, kind: str, damage: str) -> None:
    """Nothing comes out, or every file whole. A damaged list at a zip's end may make one empty, which no reader takes for an image."""
    random = np.random.default_rng(0)
    members = {f"images/é {index}.png": random.bytes(700 + index) + bytes(900) for index in range(6)}
    whole = packed(tmp_path / f"whole.{kind}", members).read_bytes()
    assert unpacked(tmp_path / f"whole.{kind}", tmp_path / "whole") == members
    refused, broken = 0, tmp_path / f"broken.{kind}"
    positions = sorted({0, len(whole) - 1, *range(5, len(whole), len(whole) // 20)})
    for position in positions:
        content = bytearray(whole)
        if damage == "flipped":
            content[position] ^= 0x10
        elif damage == "zeroed":
            content[position : position + 16] = bytes(len(content[position : position + 16]))
        else:
            del content[position:]
        broken.write_bytes(content)
        contents = unpacked(broken, tmp_path / str(position))
        if contents is None:
            refused += 1
            continue
        changed = [data for name, data in contents.items() if data != members.get(name)]
        where = f"{damage} at {position} of {len(whole)}: accepted with other contents"
        assert contents.keys() == members.keys(), where
        assert changed == [] or (kind == "zip" and changed == [b""]), where
    assert refused > 0.8 * len(positions)


def test_plain_tar_with_a_damaged_header_or_no_end_is_refused(tmp_path: Path) -> None:
    members = {f"{index}.png": bytes([index]) * 600 for index in range(1, 5)}
    whole = packed(tmp_path / "whole.tar", members).read_bytes()
    third = 2 * (512 + 1024)
    for content in (
        whole[: third + 7] + b"?" + whole[third + 8 :],  # a broken checksum ends `tarfile`'s list as an end mark does
        whole[:third] + bytes(512) + whole[third + 512 :],  # the third header is zeros: an end mark in the middle
        whole[:third],  # cut between two files
    ):
        archive = tmp_path / "broken.tar"
        archive.write_bytes(content)
        assert unpacked(archive, tmp_path / str(len(list(tmp_path.iterdir())))) is None


def test_header_that_claims_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    archive = tmp_path / "a.tar"
    archive.write_bytes(info.tobuf(tarfile.USTAR_FORMAT if info.size < 8**11 else tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(DatasetError):
        unpack(archive, tmp_path / "target", progress=quiet)
