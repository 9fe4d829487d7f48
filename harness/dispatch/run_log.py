"""What the log of a run's start says of its course: a line an epoch, a stage, a note."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def logged(tell: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """``tell``, with a line on standard output for what a log keeps; a process that runs under a log prints into it."""

    def told(content: dict[str, Any]) -> None:
        if line := log_line(content):
            print(line, flush=True)
        tell(content)

    return told


def log_line(content: dict[str, Any]) -> str:
    """The line for what a run tells of itself (`harness.experiment.scoring.Tell`); empty for single updates."""
    if content.get("stage") != "training":
        words = [str(content[name]) for name in ("stage", "split") if content.get(name)]
        images = f", {content['images']} images" if content.get("images") else ""
        return " on ".join(words) + images
    if content.get("kind") == "note":
        return str(content["text"])
    if content.get("kind") != "epoch":
        return ""
    scores = [f"validation {name} {value:.4f}" for name, value in content.get("metrics", {}).items()]
    parts = [f"loss {content['loss']:.4f}", *scores, f"rate {content['rate']:.3g}", f"{content['seconds']:.1f} s"]
    return f"epoch {content['epoch']}/{content['epochs']}: {', '.join(parts)}"
