"""Whether a process lives, as far as this machine lets us see it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from harness.dispatch import attempts as module
from harness.dispatch.attempts import Held, Holder, Lease, attempts
from tests.harness.dispatch.helpers import gone


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
    assert [start.end for start in attempts(tmp_path)] == [""]
