"""Two users of one group and one results folder: what neither can do to the other, and what they do together."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.dispatch import snapshot
from harness.dispatch.attempts import Holder, Lease, attempts, log_path, state_folder
from harness.dispatch.frozen_start import Altered, verified
from harness.dispatch.run_states import ProgressFile
from harness.dispatch.sweeps import begin_sweep
from harness.system.files import create_anew
from tests.harness.dispatch.helpers import make_job

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as two users")

ALICE, MALLORY, GROUP = 64_001, 64_002, 64_000


def as_user(user: int, act: Callable[[], object]) -> str:
    """In a process of that user with ``umask 002``: empty, or the name of the error that ``act`` ended with."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = ""
        try:
            os.setgroups([])
            os.setgid(GROUP)
            os.setuid(user)
            os.umask(0o002)
            act()
        except BaseException as error:
            said = type(error).__name__
            if said not in ("PermissionError", "Altered"):
                said += traceback.format_exc()
        os.write(writing, said.encode()[-4000:])
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A results folder of the group's, and a package of code so small that both may read it."""
    try:
        assert as_user(ALICE, lambda: None) == ""
    except AssertionError:
        pytest.skip("this process may not become another user")
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    package = top / "clone"
    package.mkdir()
    (package / "run.py").write_text("print('as submitted')\n")
    monkeypatch.setattr(snapshot, "PACKAGES", {Path("harness"): package})
    results = top / "results"
    results.mkdir()
    os.chown(results, 0, GROUP)
    results.chmod(0o2775)
    lease = Lease.acquire(top / "warm", holder=Holder.here())  # imports what Python may not find as another user
    ProgressFile(top / "warm")({"stage": "training"})
    assert attempts(lease.folder)
    for _ in range(2):
        begin_sweep(top / "warm", executor="slurm", command="", frozen=top)
    yield results
    shutil.rmtree(top)


def test_code_that_was_exchanged_with_its_folder_is_not_run(shared: Path) -> None:
    """The folder of the group's cannot be kept from its members; the hash in the job script can."""
    assert as_user(ALICE, lambda: snapshot.take(shared / "snapshots")) == ""
    (frozen,) = (shared / "snapshots" / str(ALICE)).iterdir()

    def exchange() -> None:
        (shared / "snapshots").rename(shared / "away")
        (frozen / "harness").mkdir(parents=True)
        (frozen / "harness" / "run.py").write_text("print('evil')\n")

    assert as_user(MALLORY, exchange) == ""
    assert as_user(ALICE, lambda: verified(str(frozen), frozen.name)) == Altered.__name__


def test_a_run_is_taken_over_by_another_member_and_writes_to_no_file_of_its_users_own(shared: Path) -> None:
    folder = state_folder(shared, make_job(shared).run.key)
    assert as_user(MALLORY, lambda: Lease.acquire(folder, holder=Holder.here())) == ""
    diary = shared.parent / "diary"
    diary.write_text("mine")
    os.chown(diary, ALICE, ALICE)
    diary.chmod(0o600)

    def plant() -> None:
        for name in ("attempt.2.log", "progress.tmp", "progress.json", "error.log"):
            (folder / name).symlink_to(diary)

    def go_on() -> None:
        lease = Lease.acquire(folder, holder=Holder.here())
        lease.beat()
        os.write(create_anew(log_path(folder, lease.attempt.number)), b"epoch 1")
        ProgressFile(folder)({"stage": "training"})

    assert as_user(MALLORY, plant) == ""
    assert as_user(ALICE, go_on) == ""
    assert diary.read_text() == "mine"
    assert stat.S_IMODE(diary.stat().st_mode) == 0o600
    assert [(start.number, start.end) for start in attempts(folder)] == [(1, "lost"), (2, "")]
    assert (folder / "attempt.2.log").read_text() == "epoch 1"
