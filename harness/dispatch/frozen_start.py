"""What starts a worker: the text of this module travels in the job script, with the hash of the code that was submitted.

    python -I -S -B -c TEXT SNAPSHOT HASH ARGUMENTS…

It is no part of the snapshot, to which others may write, and imports nothing from there: it reads every file once, compares all
of them with the hash, and starts the worker from a copy of the very bytes that it compared, in a folder of this user's alone. So
neither byte code beside the files nor an edit after the comparison is ever run. Standard library only.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Mapping

COPY = "sam-peft-code-"
STATUS = 3


class Altered(Exception):
    """A snapshot is not what it was when it was taken; says why, and what to do."""

    def __init__(self, frozen: str, reason: object) -> None:
        super().__init__(
            f"the frozen code in {frozen} was altered since it was taken ({reason}); move that folder away and give the command "
            "again (runs that were submitted with it stop with this line and can be submitted again)"
        )


def verified(frozen: str, expected: str) -> dict[str, bytes]:
    """Every file below a snapshot, byte code included, by its path there.

    Raises:
        Altered: ``expected`` is the hash of something else, or there is a link, a pipe or what cannot be read.
    """

    def fail(error: OSError) -> None:
        raise Altered(frozen, f"{error.filename} cannot be read: {error.strerror}") from error

    contents = {}
    for here, folders, files, handle in os.fwalk(frozen, onerror=fail):
        for name in folders + files:
            path = os.path.relpath(os.path.join(here, name), frozen)
            try:
                kind = os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
                if stat.S_ISDIR(kind):
                    continue
                if not stat.S_ISREG(kind):
                    raise Altered(frozen, f"{path} is no plain file")
                with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle), "rb") as file:
                    contents[path] = file.read()
            except OSError as error:
                fail(error)
    actual = digest(contents)
    if actual != expected:
        raise Altered(frozen, f"its files hash to {actual[:12]}")
    return contents


def digest(contents: Mapping[str, bytes]) -> str:
    """The hash of files by their paths."""
    total = hashlib.sha256()
    for name in sorted(contents):
        total.update(os.fsencode(f"{name}\0{len(contents[name])}\0"))
        total.update(contents[name])
    return total.hexdigest()


def private_copy(contents: Mapping[str, bytes]) -> str:
    """A folder that only this user may enter, locked as long as this process, or one that it starts, lives."""
    copy = tempfile.mkdtemp(prefix=_own_copies())
    handle = os.open(copy, os.O_RDONLY)
    os.set_inheritable(handle, True)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_SH)
    for name, content in contents.items():
        path = os.path.join(copy, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(content)
    return copy


def _own_copies() -> str:
    """How copies of this machine begin: others may share ``TMPDIR``, on a file system whose locks are each machine's own."""
    return f"{COPY}{os.uname().nodename}-"


def remove_unused_copies() -> None:
    """Remove copies of this user's workers on this machine that were killed before they could do so."""
    for name in os.listdir(tempfile.gettempdir()):
        if not name.startswith(_own_copies()):
            continue
        path = os.path.join(tempfile.gettempdir(), name)
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                status = os.fstat(handle)
                if status.st_uid == os.getuid() and time.time() - status.st_mtime > 60:  # a young one has no lock yet
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(handle)


def start(frozen: str, expected: str, *arguments: str) -> None:
    """Become a worker that runs the code of ``expected``, or end with a line that says why not."""
    try:
        contents = verified(frozen, expected)
        remove_unused_copies()
        copy = private_copy(contents)
    except (Altered, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(STATUS) from None
    os.chdir(copy)
    command = [sys.executable, "-u", "-m", "harness.dispatch.worker", "--frozen", expected, *arguments]
    path = os.pathsep.join(filter(None, (copy, os.environ.get("PYTHONPATH"))))  # the user's own, behind ours
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


if __name__ == "__main__":
    start(*sys.argv[1:])
