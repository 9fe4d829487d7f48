"""The lease on a run: one holder, takeover of the dead, no clocks compared, no lock."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace

import pytest

from harness.dispatch import attempts as module
from harness.dispatch.attempts import Held, Holder, Lease, Lost, attempts, close, silent_s
from harness.system import files
from harness.system.files import create_exclusively
from tests.harness.dispatch.helpers import gone
from tests.values import on_linux


def elsewhere(name="node7"):
    """A holder on another machine, whose process cannot be looked up."""
    return replace(Holder.here(), host=name, boot="another")


def test_a_lease_is_an_attempt_and_its_end_is_kept(tmp_path):
    lease = Lease.acquire(tmp_path, holder=Holder.here(), gpus=2)
    with pytest.raises(Held):
        Lease.acquire(tmp_path, holder=Holder.here())
    lease.release("interrupted", "requested to stop")
    assert Lease.acquire(tmp_path, holder=Holder.here()).attempt.number == 2
    first = attempts(tmp_path)[0]
    assert (first.end, first.detail, first.gpus) == ("interrupted", "requested to stop", 2)
    assert 0 <= first.hours < 0.01


def test_a_dead_process_on_this_machine_is_taken_over_at_once(tmp_path):
    Lease.acquire(tmp_path, holder=gone())
    begin = time.monotonic()
    lease = Lease.acquire(tmp_path, holder=Holder.here(), lease_s=600)
    assert time.monotonic() - begin < 60
    assert lease.attempt.number == 2
    assert attempts(tmp_path)[0].end == "lost"


class Clock:
    """Ours, which goes on as we sleep, and in which something may happen on the other machine."""

    def __init__(self, monkeypatch, *, happens=lambda slept: None):
        self.now, self.naps, self._happens = 50.0, [], happens
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now += seconds
        self._happens(len(self.naps))


@pytest.mark.parametrize(
    ("lease_s", "of_holder", "naps"), [(90.0, 9.0, [2.0] * 45), (10.0, 10.0, [0.5] * 20), (10.0, 100.0, [2.0] * 50)]
)
def test_a_holder_elsewhere_without_sign_of_life_is_taken_over_after_the_longer_lease(
    tmp_path, monkeypatch, lease_s, of_holder, naps
):
    far = Lease.acquire(tmp_path, holder=elsewhere(), lease_s=of_holder)
    clock = Clock(monkeypatch)
    lease = Lease.acquire(tmp_path, holder=Holder.here(), lease_s=lease_s, sleep=clock.sleep)
    assert (lease.attempt.number, clock.naps) == (2, naps)
    first = attempts(tmp_path)[0]
    assert (first.end, first.ended) == ("lost", far.attempt.seen)
    assert first.detail == f"no sign of life from process {os.getpid()} on node7"


def test_a_holder_elsewhere_that_beats_is_left_alone_whatever_its_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: 1.0)  # a clock that is decades behind
    lease = Lease.acquire(tmp_path, holder=elsewhere(), lease_s=10)

    def beat(naps):
        if naps == 3:
            monkeypatch.setattr(module.time, "time", lambda: 2.0)
            lease.beat()

    clock = Clock(monkeypatch, happens=beat)
    with pytest.raises(Held):
        Lease.acquire(tmp_path, holder=Holder.here(), lease_s=10, sleep=clock.sleep)
    assert len(clock.naps) == 3


def test_a_holder_elsewhere_that_ends_is_followed_at_once_and_its_own_end_stands(tmp_path, monkeypatch):
    lease = Lease.acquire(tmp_path, holder=elsewhere())
    clock = Clock(monkeypatch, happens=lambda naps: lease.release("interrupted", "requested to stop"))
    assert Lease.acquire(tmp_path, holder=Holder.here(), sleep=clock.sleep).attempt.number == 2
    assert len(clock.naps) == 1
    assert attempts(tmp_path)[0].end == "interrupted"


def test_the_hours_of_an_attempt_are_those_up_to_its_last_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: 3600.0)
    lease = Lease.acquire(tmp_path, holder=Holder.here(), gpus=2)
    assert attempts(tmp_path)[0].hours == 0.0
    for hour, show_life in ((2.0, lease.beat), (4.0, lambda: lease.release("finished"))):
        monkeypatch.setattr(module.time, "time", lambda hour=hour: hour * 3600.0)
        show_life()
        (attempt,) = attempts(tmp_path)
        assert (attempt.hours, attempt.gpus) == (hour - 1.0, 2)
    assert (attempt.seen, attempt.ended, attempt.end) == (7200.0, 14400.0, "finished")
    close(tmp_path, lease.attempt, "lost")  # too late
    assert attempts(tmp_path) == [attempt]
    assert silent_s(tmp_path, replace(attempt, number=9)) == math.inf


def test_an_overtaken_holder_notices_at_its_next_heartbeat(tmp_path):
    lease = Lease.acquire(tmp_path, holder=elsewhere(), lease_s=0.1)
    Lease.acquire(tmp_path, holder=Holder.here(), lease_s=0.1)
    with pytest.raises(Lost):
        lease.beat()


def test_a_contender_between_look_and_creation_wins(tmp_path, monkeypatch):
    first = []

    def meanwhile(path, text):
        monkeypatch.undo()
        first.append(Lease.acquire(tmp_path, holder=Holder.here()))
        return create_exclusively(path, text)

    monkeypatch.setattr(module, "create_exclusively", meanwhile)
    with pytest.raises(Held):
        Lease.acquire(tmp_path, holder=Holder.here())
    first[0].beat()
    assert attempts(tmp_path) == [first[0].attempt]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_in_the_last_moment_is_not_overwritten(tmp_path, monkeypatch, links):
    path, link = tmp_path / "a.json", os.link

    def late(source, target, **folders):
        path.write_text("theirs")
        if not links:
            raise OSError(files.errno.EPERM, "no links here")
        link(source, target, **folders)

    monkeypatch.setattr(files.os, "link", late)
    assert not create_exclusively(path, "ours")
    assert path.read_text() == "theirs"


@pytest.mark.parametrize("links", [True, False])
def test_creation_is_exclusive_and_whole(tmp_path, monkeypatch, links):
    def refuse(source, target, **folders):
        raise OSError(files.errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(files.os, "link", refuse)
    path = tmp_path / "a.json"
    assert create_exclusively(path, '{"who": 1}')
    assert not create_exclusively(path, '{"who": 2}')
    assert json.loads(path.read_text()) == {"who": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def hidden(monkeypatch):
    """A live process of another user below a /proc that is mounted with hidepid."""

    def kill(pid, number):
        assert number == 0
        raise PermissionError

    here = gone()
    monkeypatch.setattr(module.os, "kill", kill)
    return here


def test_a_process_lives_until_it_is_gone_or_another_has_its_number():
    here = Holder.here()
    assert here.alive() is True
    assert replace(here, ticks=here.ticks - 1).alive() is False
    assert gone().alive() is False
    assert replace(here, pid=10**12 - 1).alive() is False
    assert replace(here, boot="another").alive() is None


def test_without_proc_a_process_that_is_gone_is_known_to_be(monkeypatch):
    dead = gone()
    monkeypatch.setattr(module, "_ticks", lambda pid: None)
    assert dead.alive() is False
    assert Holder.here().alive() is None, "its heartbeat decides"


@on_linux
def test_a_zombie_is_dead():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert replace(Holder.here(), pid=child).alive() is False
    os.waitpid(child, 0)


def test_of_a_process_that_is_hidden_from_us_only_the_heartbeat_can_tell(tmp_path, hidden):
    assert hidden.alive() is None
    lease = Lease.acquire(tmp_path, holder=hidden)
    with pytest.raises(Held):
        Lease.acquire(tmp_path, holder=Holder.here(), lease_s=20.0, sleep=lambda seconds: lease.beat())
    assert [attempt.end for attempt in attempts(tmp_path)] == [""]
