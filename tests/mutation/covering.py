"""Which tests run which line, and how long they take: measured once a room on the unchanged code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage
import pytest


@dataclass(frozen=True, kw_only=True)
class Covering:
    """The measurement.

    Args:
        seconds: of every test, with its share of fixtures.
        lines: file, line -> tests; those of a fixture are all tests of the files that use it.
        failed: tests that fail unchanged.
        modules: what was imported by the end.
    """

    seconds: dict[str, float]
    lines: dict[str, dict[int, set[str]]]
    failed: list[str]
    modules: list[str]

    def tests_of(self, path: str, lines: tuple[int, int], *, most_s: float) -> list[str]:
        """The tests to run for a change of these lines, most telling first, at most ``most_s`` of them.

        Tests that run the lines; where none does (they run at import, or in another process), tests of the module.
        """
        known = self.lines.get(path, {})
        running = set().union(*(known.get(line, set()) for line in range(lines[0], lines[1] + 1)))
        running = running or set().union(*known.values())
        own = f"test_{Path(path).stem}.py::"
        chosen: list[str] = []
        spent = 0.0
        for test in sorted(running - set(self.failed), key=lambda test: (own not in test, self.seconds[test], test)):
            if chosen and spent + self.seconds[test] > most_s:
                continue
            chosen.append(test)
            spent += self.seconds[test]
        return chosen


def measure(tests: list[str], sources: list[str], written: Path) -> int:
    """Run ``tests`` and write what they cover of ``sources``."""
    watch = coverage.Coverage(data_file=None, include=[f"*/{source}" for source in sources])
    recorder = _Recorder(watch)
    watch.start()
    code = pytest.main([*OPTIONS, *tests], plugins=[recorder])
    watch.stop()
    lines: dict[str, dict[int, list[str]]] = {}
    data = watch.get_data()
    for file in data.measured_files():
        path = next(source for source in sources if file.endswith(f"/{source}"))
        by_line = {line: sorted(recorder.tests(contexts)) for line, contexts in data.contexts_by_lineno(file).items()}
        lines[path] = {line: names for line, names in by_line.items() if names}
    modules = sorted(sys.modules)
    content = {"seconds": recorder.seconds, "lines": lines, "failed": recorder.failed, "modules": modules}
    written.write_text(json.dumps(content), encoding="utf-8")
    return int(code)


def read(path: Path) -> Covering:
    """What `measure` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    lines = {file: {int(line): set(names) for line, names in tests.items()} for file, tests in content["lines"].items()}
    return Covering(seconds=content["seconds"], lines=lines, failed=content["failed"], modules=content["modules"])


OPTIONS = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", "--timeout=120"]


class _Recorder:
    """Tells coverage which test runs, and in which phase."""

    def __init__(self, watch: coverage.Coverage) -> None:
        self._watch = watch
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def tests(self, contexts: list[str]) -> set[str]:
        """Fixtures may be shared: what a test's set-up runs belongs to every test of its file."""
        names: set[str] = set()
        for context in contexts:
            phase, _, test = context.partition("|")
            file = test.partition("::")[0] + "::"
            names |= {name for name in self.seconds if name.startswith(file)} if phase == "setup" else {test} - {""}
        return names

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self._watch.switch_context(f"setup|{item.nodeid}")
        yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self._watch.switch_context(f"call|{item.nodeid}")
        yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        yield
        self._watch.switch_context("")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = round(self.seconds.get(report.nodeid, 0.0) + report.duration, 4)
        if report.failed:
            self.failed.append(report.nodeid)
