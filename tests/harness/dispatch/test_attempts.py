"""The lease on a run: one holder, takeover of the dead, no clock compared, no lock."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from harness import files
from harness.dispatch import attempts as module
from harness.dispatch.attempts import Exhausted, Held, Holder, Lease, Lost, attempts
from harness.files import create_exclusively


def elsewhere(name="node7"):
    """A holder on another machine, whose process cannot be looked up."""
    return replace(Holder.here(), host=name, boot="another")


def dead_here():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(Holder.here(), pid=process.pid, ticks=12345)


def test_a_lease_is_an_attempt_and_its_end_is_kept(tmp_path):
    lease = Lease.acquire(tmp_path, holder=Holder.here(), gpus=2)
    with pytest.raises(Held, match="attempt 1 runs on"):
        Lease.acquire(tmp_path, holder=Holder.here())
    lease.release("interrupted", "asked to stop")
    second = Lease.acquire(tmp_path, holder=Holder.here())
    assert second.attempt.number == 2
    first = attempts(tmp_path)[0]
    assert (first.end, first.detail, first.gpus) == ("interrupted", "asked to stop", 2)
    assert 0 <= first.hours < 0.01


def test_a_dead_process_on_this_machine_is_taken_over_at_once(tmp_path):
    Lease.acquire(tmp_path, holder=dead_here())
    begin = time.monotonic()
    lease = Lease.acquire(tmp_path, holder=Holder.here(), lease_s=60)
    assert time.monotonic() - begin < 1
    assert lease.attempt.number == 2
    assert attempts(tmp_path)[0].end == "lost"


def test_a_process_number_that_was_used_again_does_not_count_as_alive(tmp_path):
    Lease.acquire(tmp_path, holder=replace(Holder.here(), ticks=Holder.here().ticks - 1))
    assert Lease.acquire(tmp_path, holder=Holder.here()).attempt.number == 2


def test_a_holder_elsewhere_without_sign_of_life_is_taken_over_after_the_lease(tmp_path):
    Lease.acquire(tmp_path, holder=elsewhere())
    begin = time.monotonic()
    assert Lease.acquire(tmp_path, holder=Holder.here(), lease_s=0.5).attempt.number == 2
    assert time.monotonic() - begin >= 0.5


def test_a_holder_elsewhere_that_beats_is_left_alone_whatever_its_clock_says(tmp_path, monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: 1.0)  # a clock that is decades behind
    lease = Lease.acquire(tmp_path, holder=elsewhere())

    def beat():
        for tick in range(20):
            monkeypatch.setattr(module.time, "time", lambda tick=tick: 2.0 + tick)
            lease.beat()
            time.sleep(0.05)

    beating = threading.Thread(target=beat)
    beating.start()
    with pytest.raises(Held):
        Lease.acquire(tmp_path, holder=Holder.here(), lease_s=5)
    beating.join()


def test_an_overtaken_holder_notices_at_its_next_heartbeat(tmp_path):
    lease = Lease.acquire(tmp_path, holder=elsewhere())
    Lease.acquire(tmp_path, holder=Holder.here(), lease_s=0.1)
    with pytest.raises(Lost):
        lease.beat()


def test_the_bound_on_attempts_holds(tmp_path):
    for _ in range(2):
        Lease.acquire(tmp_path, holder=Holder.here(), limit=2).release("interrupted")
    with pytest.raises(Exhausted) as exhausted:
        Lease.acquire(tmp_path, holder=Holder.here(), limit=2)
    assert len(exhausted.value.attempts) == 2


def contend(folder, barrier, winners):
    barrier.wait()
    try:
        lease = Lease.acquire(folder, holder=Holder.here(), lease_s=0.2)
    except Held:
        return
    winners.put((lease.attempt.number, os.getpid()))
    barrier.wait(timeout=20)  # alive until all have tried


def test_of_many_contenders_for_a_dead_holders_lease_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        folder = tmp_path / str(_)
        Lease.acquire(folder, holder=elsewhere())
        barrier, winners = context.Barrier(8), context.Queue()
        processes = [context.Process(target=contend, args=(folder, barrier, winners)) for _ in range(8)]
        for process in processes:
            process.start()
        number, _pid = winners.get(timeout=30)
        time.sleep(0.6)
        assert winners.empty()
        assert number == 2
        for process in processes:
            process.kill()
            process.join()


def test_creation_is_exclusive_and_whole(tmp_path):
    path = tmp_path / "a.json"
    assert create_exclusively(path, '{"who": 1}')
    assert not create_exclusively(path, '{"who": 2}')
    assert json.loads(path.read_text()) == {"who": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_a_file_system_without_hard_links_works_too(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(files.errno.EPERM, "no links here")

    monkeypatch.setattr(files.os, "link", refuse)
    assert create_exclusively(tmp_path / "a.json", "1")
    assert not create_exclusively(tmp_path / "a.json", "2")
    assert (tmp_path / "a.json").read_text() == "1"
