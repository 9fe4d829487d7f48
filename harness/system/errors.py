"""The exception that a verb turns into one line on stderr and exit code 2, and wording for errors of the operating system."""

from __future__ import annotations

import difflib
import errno
import os
import re
import resource
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """An error that the user can fix; the message is one line: what is wrong, and what to do."""


def shortened(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text)} characters)"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`` (did you mean X?)`` for the nearest choice, or `` (choose from …)``."""
    known = sorted(choices)
    near = difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (choose from {', '.join(known)})"


def line_in(file: str | None, error: BaseException) -> str:
    """`` (FILE, line N)`` for the last line of a file in an error's traceback, empty without one."""
    lines = [step.lineno for step in traceback.extract_tb(error.__traceback__) if step.filename == file]
    return f" ({os.path.basename(file)}, line {lines[-1]})" if file and lines else ""


REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota on this disk is used up",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EROFS: "the disk is read-only",
    errno.EFBIG: "no file may be that large (ulimit -f)",
}


_NO_MEMORY = ("allocate memory", "out of memory", "failed to map segment", "bad_alloc", "alloc_failed")
"""Wording of the system, of torch, of CUDA's libraries (``CUBLAS_STATUS_ALLOC_FAILED``), and of an ImportError where memory is too
short to load a library."""
_NO_THREAD = ("can't start new thread", "thread creation failed")
"""Wording where a process with many threads meets a limit on memory; a limit on the number of processes has the same."""


def out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or the last line of a process, says that memory or a limit on it was exhausted."""
    text = str(error).lower()
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    words = (*_NO_MEMORY, *(_NO_THREAD if limited else ()))
    is_bare = text.strip().partition(":")[0] == "memoryerror"  # the last line of a traceback
    return isinstance(error, MemoryError) or is_bare or any(word in text for word in words)


_DEVICE_FAULTS = re.compile(
    r"uncorrectable ecc|launch failure|illegal memory access|illegal instruction|misaligned address|hardware stack|fallen off the bus"
    r"|busy or unavailable|cublas_status_(not_initialized|execution_failed|internal_error)|cudnn_status_internal_error"
)


def device_fault(error: BaseException | str) -> bool:
    """Whether an error, or the last line of a process, says that a GPU or its driver failed rather than the run; this process can
    then use nothing on the GPU any more."""
    return _DEVICE_FAULTS.search(str(error).lower()) is not None


def os_reason(error: OSError) -> str:
    """The reason of a system error in words."""
    return REASONS.get(error.errno or 0) or error.strerror or str(error)


@contextmanager
def writing_to(what: str, *, then: str = "") -> Iterator[None]:
    """Turn an OSError of the block into a UsageError that says that ``what`` cannot be written, why, and what to do (``then``)."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{what} cannot be written: {os_reason(error)}{then}") from error
