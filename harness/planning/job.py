"""A run with where its inputs lie and where its results go: all that a worker needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from harness.archive.schema import Run


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to execute.

    Args:
        checkpoint: path of the pretrained weights, empty for random weights.
        plugins: plug-in files to load first.
    """

    run: Run
    dataset_root: str
    checkpoint: str
    results: str
    plugins: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        return cls(**{**data, "run": Run(**data["run"]), "plugins": tuple(data.get("plugins", ()))})
