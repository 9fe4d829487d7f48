"""A small file in which a run says how far it is, for `sam-peft status` and the progress display."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.dispatch.run_states import share_of_epochs
from harness.system.files import write_atomically

PROGRESS_SECONDS = 2.0


class ProgressFile:
    """Where a run is, for whoever asks: ``state/<key>/progress.json``, at each change of stage and every two seconds.

    Other stages are told with the last position in training.

    Args:
        folder: of the run.
        written: called after each writing.
    """

    def __init__(self, folder: Path, *, written: Callable[[], None] = lambda: None) -> None:
        self._path = folder / "progress.json"
        self._then = written
        self._written = 0.0
        self._stage: object = None
        self._position: dict[str, Any] = {}

    def __call__(self, content: dict[str, Any]) -> None:
        now = time.monotonic()
        stage = (content.get("stage"), content.get("split"))
        if stage == self._stage and now - self._written < PROGRESS_SECONDS:
            return
        self._written, self._stage = now, stage
        if "epoch" in content:
            position = {name: int(content[name]) for name in ("epoch", "epochs", "step", "steps")}
            before = {**position, "step": max(0, position["step"] - 1)}
            self._position = {"begun": share_of_epochs(**before), **self._position, **position}
        content = {name: None if value != value else value for name, value in content.items()}  # NaN is no JSON
        with contextlib.suppress(OSError):  # a full disk must not end a run for its progress display
            text = json.dumps({**self._position, **content, "at": time.time()}, default=str)
            write_atomically(self._path, text, durable=False)
        self._then()
