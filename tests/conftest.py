"""What every test gets."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness.datasets import samples
from harness.registry import BENCHMARKS, METHODS


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests share its fixtures, so one worker of a parallel run gets them all. The contract's go case by case, and
    last: cases are short, and no worker waits long for another's."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # which would leave files of few and long tests for the end

    class ByFileOrCase(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.rpartition("-")[0] if "test_contract.py" in nodeid else super()._split_scope(nodeid)

    return ByFileOrCase(config, log)


def pytest_collection_finish() -> None:
    """Thousands of tests and the modules that they import stay to the end: looking through them for garbage every few hundred
    objects took an eighth of the contract's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "test_contract.py" in item.nodeid)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is remembered in the cache of whoever runs the tests; processes that tests start inherit it."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["SAM_PEFT_SETTINGS"] = "none"  # nor does it matter what they have set


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What a test writes need not survive a power cut: a record waited for the disk longer than for the processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _samples_are_drawn_once() -> Iterator[None]:
    """Most of a generated sample's time is its scenes', and nearly every module generates the same."""
    draw = samples.scene

    @functools.cache
    def drawn(*arguments: Any, **options: Any) -> Any:
        scene = draw(*arguments, **options)
        for array in (scene.image, scene.classes):  # the next test gets the same
            array.setflags(write=False)
        return scene

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "scene", drawn)
        yield


@pytest.fixture(autouse=True)
def _signal_handlers_are_put_back() -> Iterator[None]:
    """A handler that one test leaves would swallow the signal that the next one sends."""
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring does not watch the processor for a second before it begins."""
    monkeypatch.setattr("harness.costing.instruments._cpu_used", lambda seconds: "")


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a verb prints that must end with ``code``; of a refusal (2) the one line of its error."""

    def call(verb: Callable[[list[str]], int], *words: object, code: int = 0) -> str:
        capsys.readouterr()
        assert verb([str(word) for word in words]) == code
        shown = capsys.readouterr()
        if code != 2:
            return shown.out + shown.err
        (line,) = shown.err.splitlines()
        assert line.startswith("error: ")
        return line

    return call


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    before = [(registry, dict(registry._loaded)) for registry in (METHODS, BENCHMARKS)]
    yield
    for registry, loaded in before:
        registry._loaded.clear()
        registry._loaded.update(loaded)


@pytest.fixture(autouse=True, scope="module")
def _registries_of_a_module() -> Iterator[None]:
    """What a module's own fixtures load, folders as benchmarks too, is unknown to the next module."""
    with _restored():
        yield


@pytest.fixture(autouse=True)
def _registries_as_they_were() -> Iterator[None]:
    """A plug-in that one test loads is unknown to the next."""
    with _restored():
        yield
