"""pytest in a forked child: what takes seconds to import is imported once, the code under test in every child."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

OWN = ("harness", "methods", "datasets", "tests", "conftest", "benchmarks")
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: whoever a killed child leaves behind becomes a child of ours


def adopt_orphans() -> None:
    """What tests start and leave can be found and ended (`end_children`)."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def preload(names: Iterable[str]) -> None:
    """Import what is not the project's own; what cannot be imported alone is left to the children."""
    for name in names:
        if name.partition(".")[0] not in OWN:
            with contextlib.suppress(BaseException):
                importlib.import_module(name)


def in_child(work: Callable[[], int], *, tree: Path, log: Path, limit_s: float) -> int | None:
    """The exit code of ``work`` in a child whose working directory and import path is ``tree``.

    Returns:
        None where it was ended at the limit. Whatever it started is ended with it.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _become(tree, log)
        code = 70
        try:
            code = int(work())
        except BaseException as error:  # the child must not run on in the parent's program
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + limit_s
    status = None
    try:
        while status is None and time.monotonic() < end:
            done, raw = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(raw) if done else None
            time.sleep(0.0 if done else 0.05)
    finally:  # at the limit, and where Ctrl-C ends the waiting
        end_children()
    return status


def _become(tree: Path, log: Path) -> None:
    os.setsid()
    os.chdir(tree)
    sys.path[:] = [str(tree), *(entry for entry in sys.path if entry and Path(entry).resolve() != Path.cwd())]
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]
    os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)


def end_children() -> None:
    """End every child that there is, those adopted too, until there is none."""
    while children := _children(os.getpid()):
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def copy_tree(root: Path, tree: Path, files: Iterable[str]) -> None:
    """The repository's files and links, fresh, where they may be changed."""
    shutil.rmtree(tree, ignore_errors=True)
    for name in files:
        if (root / name).is_file() or (root / name).is_symlink():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, tree / name, follow_symlinks=False)
