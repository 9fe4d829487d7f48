"""The numbers of a results folder as pandas frames, a number a row, for questions that no page asks (docs/tables.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from harness.archive.archive import Archive
from harness.archive.cost import CostStore
from harness.archive.files import all_image_scores, image_groups
from harness.archive.schema import Record

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["scores", "images", "history", "alphas", "evidence", "costs"]

RUN = ("method", "variant", "benchmark", "backbone", "checkpoint", "protocol", "protocol_hash", "seed")
"""Columns of every frame but that of costs, after the key of the run."""


def frame(archive: Archive, kind: Kind, records: Iterable[Record] | None = None) -> pd.DataFrame:
    """All numbers of one kind.

    ``scores``: model (``best``, ``last``, ``merged-exact``, …), split, metric, value in [0, 1] (nats for ``nll``).
    ``images``: the same with stem and group. ``history``: epoch, quantity (`epoch_numbers`) and value.
    ``alphas``: epoch, site, operation (its place) and its share of softmax(α).
    ``evidence``: block, quantity, place in it (head, frequency) and value of the trained model and of its frozen backbone.
    ``costs``: session, place, method, variant, quantity, part, round and value in SI units; rounds of one session pair.

    Args:
        records: only of these; all of the folder's that ended well if None. Costs belong to no record.

    Raises:
        ValueError: a file beside a record is not what was written with it.
    """
    import pandas as pd

    if kind == "costs":
        return pd.DataFrame(_costs(archive))
    rows = {
        "scores": _scores, "images": _images, "history": _history, "alphas": _alphas, "evidence": _evidence
    }[kind]  # fmt: skip
    chosen = archive.records if records is None else records
    return pd.DataFrame(
        {"key": record.key, **{name: getattr(record.run, name) for name in RUN}, **row}
        for record in chosen
        if record.code == "OK"
        for row in rows(archive, record)
    )


def _scores(archive: Archive, record: Record) -> Iterator[dict[str, Any]]:
    for model, splits in record.scores.items():
        for split, scores in splits.items():
            for metric, value in scores.items():
                yield {"model": model, "split": split, "metric": metric, "value": value}


def _images(archive: Archive, record: Record) -> Iterator[dict[str, Any]]:
    path, digest = archive.store.images_path(record.key), record.beside.get("images.csv", "")
    if not path.exists():
        return
    for (model, split), metrics in all_image_scores(path, expected=digest).items():
        groups = image_groups(path, variant=model, split=split, expected=digest)
        for metric, scores in metrics.items():
            for stem, value in scores.items():
                where = {"model": model, "split": split, "stem": stem, "group": groups.get(stem, stem)}
                yield {**where, "metric": metric, "value": value}


def epoch_numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Quantity -> number of an entry of a record's history, and of what is told while a run goes on: ``train/loss``,
    ``train/lr``, ``train/seconds``, ``val/iou`` and the like."""
    names = {"loss": "train/loss", "lr": "train/lr", "seconds": "train/seconds"}
    numbers = {name: entry[key] for key, name in names.items() if entry.get(key) is not None}
    return numbers | {f"val/{name}": value for name, value in entry.get("val", {}).items()}


def _history(archive: Archive, record: Record) -> Iterator[dict[str, Any]]:
    for entry in archive.whole(record.key).history:
        for quantity, value in epoch_numbers(entry).items():
            yield {"epoch": entry["epoch"], "quantity": quantity, "value": value}


def _alphas(archive: Archive, record: Record) -> Iterator[dict[str, Any]]:
    for epoch, sites in enumerate(archive.store.architecture(record), start=1):
        for site, shares in sites.items():
            for operation, share in enumerate(shares):
                yield {"epoch": epoch, "site": site, "operation": operation, "share": share}


def _evidence(archive: Archive, record: Record) -> Iterator[dict[str, Any]]:
    found = archive.evidence(record)
    for number, block in enumerate(found.blocks if found else ()):
        for quantity in ("distance_px", "after_attention", "after_mlp"):
            pairs = zip(getattr(block.trained, quantity), getattr(block.frozen, quantity), strict=True)
            for place, (trained, frozen) in enumerate(pairs):
                yield {"block": number, "quantity": quantity, "place": place, "trained": trained, "frozen": frozen}


def _costs(archive: Archive) -> Iterator[dict[str, Any]]:
    for session in CostStore(archive.root):
        for one in session.methods:
            method = {"session": session.session, "place": session.place, "method": one.method, "variant": one.variant}
            for quantity, parts in (("step_seconds", one.step_seconds), ("inference_seconds", one.inference_seconds)):
                for part, rounds in parts.items():
                    for number, value in enumerate(rounds):
                        yield {**method, "quantity": quantity, "part": part, "round": number, "value": value}
            for quantity, exact in (("memory_bytes", one.memory_bytes), ("flops", one.flops)):
                for part, value in exact.items():
                    yield {**method, "quantity": quantity, "part": part, "round": 0, "value": value}
