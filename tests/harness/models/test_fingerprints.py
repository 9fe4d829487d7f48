"""A checkpoint is known by every byte, and read once."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.models.fingerprints import fingerprint
from harness.planning.plan import Pretrained, pretrained
from harness.planning.request import Request
from harness.protocols.load import load_protocol
from harness.system import hashes
from tests.values import REPOSITORY

SIZE = 3 << 20


def planned(path: str | Path, backbone: str = "vit_b") -> Pretrained:
    request = Request(entries=(), benchmarks=(), protocol="mini", checkpoints={"": Path(path)})
    return pretrained(request, backbone, load_protocol("mini"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that were read as a whole; the cache is empty, and what changed a moment ago is settled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_SETTLED_S", -3600.0)
    read: list[str] = []
    digest = hashlib.file_digest

    def counted(file, name):
        read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return read


def write(path: Path, *, changed: int | None = None, size: int = SIZE) -> Path:
    content = bytearray(size)
    if changed is not None:
        content[changed] = 1
    path.write_bytes(content)
    return path


def test_every_byte_counts_for_the_fingerprint(reads: list[str], tmp_path: Path) -> None:
    files = [write(tmp_path / f"{place}", changed=place) for place in (None, 0, SIZE // 2, SIZE - 1)]
    files.append(write(tmp_path / "longer", size=SIZE + 1))
    assert len({fingerprint(path) for path in files}) == 5
    assert fingerprint(files[0]) == "sha256-" + hashlib.sha256(bytes(SIZE)).hexdigest()


def test_a_file_is_read_once_and_again_when_it_changed(reads: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    first = fingerprint(path)
    assert [fingerprint(path), *reads] == [first, "file"]
    status = path.stat()
    with path.open("r+b") as file:  # same inode and size, and the time of change set back
        file.seek(SIZE // 2)
        file.write(b"\1")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert fingerprint(path) != first
    os.replace(write(tmp_path / "other"), path)
    assert fingerprint(path) == first
    assert reads == ["file"] * 3


def test_a_checkpoint_is_held_against_a_backbone_once_and_again_when_it_changed(reads, tmp_path, monkeypatch) -> None:
    """So that torch is not imported for every plan; not where the file changed while it was checked."""
    path, checked = write(tmp_path / "file"), []
    during: list[Callable[[Path], Path]] = []
    monkeypatch.setattr("harness.models.build.require_checkpoint", lambda backbone, _: checked.append(backbone))
    monkeypatch.setattr("harness.planning.plan.read_tensors", lambda path: [change(path) for change in during])

    plan = functools.partial(planned, path)
    first = plan("vit_b")
    assert (plan("vit_b"), first.fingerprint) == (first, fingerprint(path))
    assert plan("vit_l") == plan("vit_b") == plan("vit_l")
    assert checked == ["vit_b", "vit_l"]
    code = "import sys; from tests.harness.models.test_fingerprints import planned; planned(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=REPOSITORY, check=True)
    with monkeypatch.context() as other:  # code may say otherwise
        other.setattr("harness.models.fingerprints._judge", lambda: "other code")
        assert plan("vit_b") == first
        assert checked.pop() == "vit_b"
    assert checked == ["vit_b", "vit_l"]
    during.append(lambda path: write(path, changed=1))
    write(path, changed=0)
    plan("vit_b")
    during.clear()
    assert plan("vit_b").fingerprint == plan("vit_b").fingerprint != first.fingerprint
    assert checked == ["vit_b", "vit_l", "vit_b", "vit_b"]
