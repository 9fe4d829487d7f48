"""A run with where its inputs lie and where its results go: all that a worker needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.archive.schema import Run
from harness.settings import CACHE_GIB


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to execute.

    Args:
        checkpoint: path of the pretrained weights, empty for random weights.
        plugins: plug-in files to load first.
        cache: folder of decoded images and embeddings; variables such as ``$TMPDIR`` are those of where the run is. Empty for one in
            the results.
        cache_gib: bound on its size.
    """

    run: Run
    dataset_root: str
    checkpoint: str
    results: str
    plugins: tuple[str, ...] = ()
    cache: str = ""
    cache_gib: float = CACHE_GIB

    @property
    def cache_folder(self) -> Path:
        """The folder of ``cache`` on this machine; the one in the results where a variable in it is not set here."""
        given = os.path.expandvars(os.path.expanduser(self.cache))
        return Path(given) if given and "$" not in given else Path(self.results) / "cache"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        return cls(**{**data, "run": Run(**data["run"]), "plugins": tuple(data.get("plugins", ()))})
