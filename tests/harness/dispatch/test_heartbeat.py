"""A lease kept alive from a thread while other work goes on."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from harness.dispatch import attempts as module
from harness.dispatch.attempts import Lease, Lost, beating

PATIENCE_S = 20.0


class Watched(Lease):
    """Beats are counted, and raise what is given, in turn."""

    def __init__(self, *errors):
        self.beats = threading.Semaphore(0)
        self._errors = iter(errors)

    def beat(self):
        self.beats.release()
        error = next(self._errors, None)
        if error is not None:
            raise error

    def wait_for(self, count):
        for _ in range(count):
            assert self.beats.acquire(timeout=PATIENCE_S)


def test_the_lease_beats_while_the_work_goes_on_and_no_longer():
    lease = Watched()
    with beating(lease, lease_s=0.006) as given:
        assert given is lease
        (thread,) = [t for t in threading.enumerate() if t is not threading.main_thread() and "_run" in t.name]
        assert thread.daemon  # a debugger that is left in the middle ends
        lease.wait_for(3)
    assert not thread.is_alive()


def test_the_interval_is_a_sixth_of_the_lease(monkeypatch):
    waits = []

    class Done(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return True

    monkeypatch.setattr(module, "threading", SimpleNamespace(Event=Done, Thread=threading.Thread))
    with beating(Watched(), lease_s=12.0):
        pass
    with beating(Watched()):
        pass
    assert waits == [2.0, 15.0]


def test_a_disk_that_is_full_is_told_and_the_next_beat_comes(capsys):
    lease = Watched(OSError(28, "No space left on device"))
    with beating(lease, lease_s=0.006):
        lease.wait_for(2)
    assert capsys.readouterr().err.startswith("heartbeat: [Errno 28] No space left on device\n")


def test_a_lease_that_is_lost_ends_the_process_at_once(monkeypatch, capsys):
    codes: list[int] = []
    monkeypatch.setattr(module, "os", SimpleNamespace(_exit=codes.append))
    lease = Watched(Lost("overtaken"))
    with beating(lease, lease_s=0.006):
        lease.wait_for(1)
    assert codes == [1]
    assert "Lost: overtaken" in capsys.readouterr().err
