"""A results folder as a whole: its records and the files beside them, each read at most once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from harness.archive.cache import Look, look
from harness.archive.cost import CostRecord, CostStore
from harness.archive.files import image_groups, image_scores
from harness.archive.measured import EvidenceRecord, EvidenceStore
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.registry import groups_by_rule, operation_names

Shares = Mapping[str, Sequence[float]]
"""site -> softmax(α) over its operations, of one epoch."""


@dataclass(frozen=True, kw_only=True)
class PerImage:
    """Scores of one run on one split.

    Args:
        scores: stem -> score.
        clusters: stem -> cluster, where images are not independent (frames of one video); else empty.
    """

    scores: Mapping[str, float]
    clusters: Mapping[str, str] = field(default_factory=dict)


class Archive:
    """What a results folder holds.

    Args:
        root: the results folder; one that does not exist holds nothing.

    ``keeps_pages``: whether whoever keeps texts of pages in the cache of the records will save it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keeps_pages = False
        self.store = RecordStore(root)
        self._evidence = EvidenceStore(root)
        self._scores = lru_cache(maxsize=32)(self._read_scores)  # a baseline's images are asked for by every other row
        self._clusters = lru_cache(maxsize=32)(self._read_clusters)
        self._shares: dict[str, Shares | None] = {}
        self._inside: dict[str, EvidenceRecord | None] = {}
        self._whole: dict[str, Record] = {}

    @cached_property
    def seen(self) -> Look:
        """The one look at the folder of records."""
        return look(self.root)

    @cached_property
    def records(self) -> list[Record]:
        """Without their histories, in the order of their keys."""
        if not self.keeps_pages:
            self.seen.save()
        return self.seen.summaries()

    @property
    def problems(self) -> dict[Path, str]:
        """Files that are no readable record, with the reason."""
        return self.seen.problems

    @cached_property
    def costs(self) -> list[CostRecord]:
        """Every cost session, by key and session."""
        return sorted(CostStore(self.root), key=lambda session: (session.key, session.session))

    def whole(self, key: str) -> Record:
        """A record that is listed, with its history and its α history."""
        if key not in self._whole:
            record = self.store.read(key)
            assert record is not None
            self._whole[key] = record
        return self._whole[key]

    def images(self, record: Record, model: str, split: str, metric: str) -> PerImage | None:
        """Per-image scores of one of a run's models, None where there are none; clusters by the benchmark's rule where the
        file tells none."""
        digest = record.beside.get("images.csv", "")
        scores = self._scores(record.key, digest, model, split, metric)
        if not scores:
            return None
        clusters = self._clusters(record.key, digest, record.run.benchmark, model, split, frozenset(scores))
        return PerImage(scores=scores, clusters=clusters)

    def _read_scores(self, key: str, digest: str, model: str, split: str, metric: str) -> dict[str, float] | None:
        return image_scores(self.store.images_path(key), variant=model, split=split, metric=metric, expected=digest)

    def _read_clusters(
        self, key: str, digest: str, benchmark: str, model: str, split: str, stems: frozenset[str]
    ) -> dict[str, str]:
        told = image_groups(self.store.images_path(key), variant=model, split=split, expected=digest)
        return told or groups_by_rule(benchmark, stems)

    def mixture(self, record: Record) -> Shares | None:
        """softmax(α) at the end of a run; None of a method without a choice of operations, and of a run without a history."""
        if record.key not in self._shares:
            self._shares[record.key] = self._read_mixture(record)
        return self._shares[record.key]

    def _read_mixture(self, record: Record) -> Shares | None:
        if record.code != "OK" or len(operation_names(record.run.method, record.run.method_config)) < 2:
            return None
        try:
            history = self.store.architecture(record)
        except ValueError:
            return None
        return history[-1] if history else None

    def evidence(self, record: Record) -> EvidenceRecord | None:
        """What a run's model does inside, None where it was not measured."""
        if record.key not in self._inside:
            self._inside[record.key] = self._evidence.find(record.key)
        return self._inside[record.key]
