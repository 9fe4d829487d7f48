"""``python -m tests.mutation ROOM``: how many small wrong changes of a room's code its tests notice.

A seeded sample of mutants (`mutants.toml`); for each, the tests that run the changed line, until the first fails, and for
one that lives the room's ``last`` ones, whose processes of their own hide which lines they run. The working tree is not
touched: a copy of it is changed. Exit code 1 where the score lies under the target.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.covering import OPTIONS, Covering, measure, read
from tests.mutation.forks import adopt_orphans, copy_tree, in_child, preload
from tests.mutation.mutants import Mutant, sample

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text(encoding="utf-8"))
TARGET = 0.9


def main() -> int:
    """Score one room."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("room", choices=list(CONFIGURATION["rooms"]))
    parser.add_argument("--sample", type=int, default=CONFIGURATION["sample"], help="mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=CONFIGURATION["seed"], help="draws them (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose file or lines hold this")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="run these for every mutant, unmeasured")
    parser.add_argument("--measured", action="store_true", help="trust the last measurement of which tests run what")
    parser.add_argument("--again", action="store_true", help="only those that lived last time")
    arguments = parser.parse_args()
    room = CONFIGURATION["rooms"][arguments.room]
    build = ROOT / "build" / "mutants"
    build.mkdir(parents=True, exist_ok=True)
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    tree = build / arguments.room
    copy_tree(ROOT, tree, files.stdout.splitlines())
    adopt_orphans()
    sources = _files(room["sources"], without=room.get("without", []))
    drawn = sample(ROOT, sources, CONFIGURATION["operators"], n=arguments.sample, seed=arguments.seed)
    result = build / f"{arguments.room}.json"
    if arguments.again:
        lived = {tuple(name) for name in json.loads(result.read_text(encoding="utf-8"))["lived"]}
        drawn = [mutant for mutant in drawn if mutant.name in lived]
    drawn = [mutant for mutant in drawn if arguments.only in " ".join(mutant.name)]
    measured = build / f"{arguments.room}-covering.json"
    if arguments.tests or arguments.measured:
        covering = read(measured)
    else:
        covering = _measured(measured, _files(room["tests"], without=room.get("last", [])), sources, tree)
    preload(covering.modules)
    if arguments.tests and _fails(arguments.tests, limit_s=1800, tree=tree):
        raise SystemExit(f"these tests fail unchanged; see {build / f'{arguments.room}-last.log'}")
    return _score(drawn, covering, tree=tree, tests=arguments.tests, room=arguments.room, result=result)


def _files(patterns: list[str], *, without: Sequence[str] = ()) -> list[str]:
    left_out = {path for pattern in without for path in ROOT.glob(pattern)}
    paths = {path for pattern in patterns for path in ROOT.glob(pattern)} - left_out
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def _measured(written: Path, tests: list[str], sources: list[str], tree: Path) -> Covering:
    log = written.with_suffix(".log")
    begun = time.monotonic()
    code = in_child(lambda: measure(tests, sources, written), tree=tree, log=log, limit_s=1800)
    if code not in (0, 1):
        raise SystemExit(f"the tests did not run through unchanged; see {log}")
    covering = read(written)
    print(f"{len(covering.seconds)} tests in {time.monotonic() - begun:.0f} s", flush=True)
    for test in covering.failed:
        print(f"fails unchanged, and is left out: {test}", flush=True)
    return covering


def _score(
    drawn: list[Mutant], covering: Covering, *, tree: Path, tests: list[str] | None, room: str, result: Path
) -> int:
    listed = {(entry["path"], entry["was"], entry["becomes"]): entry for entry in CONFIGURATION.get("known", [])}
    noticed: list[Any] = []
    lived: list[Any] = []
    same: list[Any] = []
    begun = time.monotonic()
    for mutant in drawn:
        known = listed.get(mutant.name)
        if known is not None and known["same"]:
            same.append(mutant)
            continue
        run = tests or covering.tests_of(mutant.path, mutant.lines, most_s=CONFIGURATION["most_s"])
        took = time.monotonic()
        limit_s = 30 + 6 * sum(covering.seconds.get(test, 20) for test in run)
        dead = _noticed(mutant, run, limit_s=limit_s, tree=tree)
        if not dead and tests is None:
            dead = _noticed(mutant, _files(CONFIGURATION["rooms"][room].get("last", [])), limit_s=300, tree=tree)
        (noticed if dead else lived).append(mutant)
        print(
            f"{'noticed' if dead else 'LIVES  '} {time.monotonic() - took:5.1f} s  {mutant.path}:{mutant.lines[0]}",
            flush=True,
        )
        if not dead:
            print(f"    was:     {mutant.was}\n    becomes: {mutant.becomes}\n    tests:   {len(run)}")
            print(f"    {known['why']}" if known is not None else "    not listed in mutants.toml", flush=True)
    n = len(noticed) + len(lived)
    score = len(noticed) / max(1, n)
    print(f"{room}: {len(noticed)} of {n} noticed, {100 * score:.0f} % ({len(same)} that change nothing left out)")
    print(f"{time.monotonic() - begun:.0f} s")
    result.write_text(json.dumps({"lived": [mutant.name for mutant in lived]}), encoding="utf-8")
    return 0 if score >= TARGET else 1


def _noticed(mutant: Mutant, tests: list[str], *, limit_s: float, tree: Path) -> bool:
    target = tree / mutant.path
    right = target.read_bytes()
    try:
        _write(target, mutant.code.encode())
        return bool(tests) and _fails(tests, limit_s=limit_s, tree=tree)
    finally:
        _write(target, right)


def _fails(tests: list[str], *, limit_s: float, tree: Path) -> bool:
    log = tree.with_name(f"{tree.name}-last.log")
    options = [*OPTIONS, "-x", f"--basetemp={tree.with_name(f'{tree.name}-tmp')}", *tests]
    code = in_child(lambda: int(pytest.main(options)), tree=tree, log=log, limit_s=limit_s)
    if code == pytest.ExitCode.USAGE_ERROR and "not found" in log.read_text(encoding="utf-8", errors="replace"):
        raise SystemExit(f"a test that was measured is not found; see {log}")
    return code != 0


def _write(target: Path, content: bytes) -> None:
    """Written, and nothing compiled of it before: the same second and size would pass for the same file."""
    target.write_bytes(content)
    for compiled in (target.parent / "__pycache__").glob(f"{target.stem}.*.pyc"):
        compiled.unlink()


if __name__ == "__main__":
    sys.exit(main())
