"""Finished runs for TensorBoard and Weights & Biases, and all numbers as CSV.

Offline, as compute nodes often have no network: curves, α, scores, rules and pictures of a run are read from its record and its
sidecar files, and go into files that the tracker shows or uploads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from harness.archive.archive import Archive, Kind, epoch_numbers, frame
from harness.archive.masks import MASKS, read_masks
from harness.archive.schema import Record
from harness.comparison.rules import flat
from harness.registry import operation_names
from harness.system.errors import UsageError, os_reason
from harness.system.files import new_folder
from harness.system.text import csv_cell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TRACKERS = ("tensorboard", "wandb")
"""Each is also the name of the package that it needs."""
TARGETS = (*TRACKERS, "csv")


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A run as trackers see it.

    Args:
        name: of its row, and a name for files.
        project: the protocol.
        key: of the record.
        rules: protocol, options and identity, dotted name -> value.
        curves: epoch -> quantity -> number: loss, rate, validation, shares of softmax(α).
        scores: ``best/test/iou`` -> value.
        pictures: ``masks/test/STEM`` -> (S, 2 S, 3) uint8, the predicted mask left, the truth right.
    """

    name: str
    project: str
    key: str
    rules: Mapping[str, Any]
    curves: Mapping[int, Mapping[str, float]]
    scores: Mapping[str, float]
    pictures: Mapping[str, NDArray[np.uint8]]

    @property
    def last(self) -> int:
        return max(self.curves, default=0)


def logged(record: Record, archive: Archive) -> Logged:
    """All that a record and its sidecar files hold. Raises ValueError: one of these is not what was written with it."""
    run = record.run
    curves = {int(entry["epoch"]): epoch_numbers(entry) for entry in record.history}
    operations = operation_names(run.method, run.method_config)
    for epoch, sites in enumerate(record.architecture, start=1):
        for site, shares in sites.items():
            named = operations if len(operations) == len(shares) else [str(place) for place in range(len(shares))]
            shown = {f"alpha/{site}/{name}": share for name, share in zip(named, shares, strict=True)}
            curves.setdefault(epoch, {}).update(shown)
    about = ("method", "variant", "benchmark", "backbone", "checkpoint", "protocol", "protocol_hash", "seed")
    rules = {name: getattr(run, name) for name in about} | flat(run.rules)
    rules |= {f"{run.method}.{name}": value for name, value in run.method_config.items()}
    path = archive.store.masks_path(record.key)
    masks = read_masks(path, expected=record.sidecars.get(MASKS, "")) if path.is_file() else []
    return Logged(
        name=re.sub(r"[^\w.=,+-]+", "_", f"{run.variant}-{run.benchmark}-s{run.seed}-{record.key[:8]}"),
        project=run.protocol,
        key=record.key,
        rules=rules | {"key": record.key, **{f"parameters.{name}": n for name, n in record.parameters.items()}},
        curves=curves,
        scores={f"{model}/{split}/{metric}": value for model, split, metric, value in record.each_score()},
        pictures={f"masks/{mask.split}/{mask.stem}": mask.coloured() for mask in masks},
    )


def require_target(target: str) -> None:
    """Raises UsageError where what the target needs is not installed."""
    if target in TRACKERS and find_spec(target) is None:
        raise UsageError(f"--to {target} needs the package of that name: pip install 'sam-peft-harness[{target}]'")


def export_records(archive: Archive, keys: Sequence[str], target: str, out: Path) -> int:
    """Write the runs with these keys into a new folder, whole or not at all; how many there are. Raises UsageError: the folder
    holds something, or cannot be written; or a sidecar file is damaged."""
    require_target(target)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there and holds something; give a folder that is new or empty")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {out.absolute().parent}; make it first, or correct the path")
    try:
        with new_folder(out) as folder:
            if target in TRACKERS:
                runs = (logged(archive.whole(key), archive) for key in keys)
                _WRITERS[target](runs, folder)
            else:
                _tables(archive, set(keys), folder)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {os_reason(error)}") from error
    except ValueError as error:
        raise UsageError(f"nothing was written: {error}; sam-peft records check names the file") from error
    return len(keys)


def _tables(archive: Archive, keys: set[str], folder: Path) -> None:
    records = [record for record in archive.records if record.key in keys]
    for kind in (kind for kind in get_args(Kind) if kind != "runs"):
        table = frame(archive, kind, records)
        if len(table):
            texts = table.select_dtypes(include=["object", "string"]).columns
            table[texts] = table[texts].map(lambda value: csv_cell(value) if isinstance(value, str) else value)
            table.to_csv(folder / f"{kind}.csv", index=False)


def _tensorboard(runs: Iterable[Logged], folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    for run in runs:
        with SummaryWriter(str(folder / run.name)) as writer:
            for epoch, numbers in run.curves.items():
                for name, value in numbers.items():
                    writer.add_scalar(name, value, epoch)
            for name, value in run.scores.items():
                writer.add_scalar(name, value, run.last)
            for name, picture in run.pictures.items():
                writer.add_image(name, picture, run.last, dataformats="HWC")
            rows = "\n".join(f"| {name} | {value} |" for name, value in run.rules.items())
            writer.add_text("rules", f"| rule | value |\n|---|---|\n{rows}")
            plain = {
                name: value if isinstance(value, bool | int | float | str) else str(value)
                for name, value in run.rules.items()
            }
            for part in hparams(plain, dict(run.scores)):
                writer.file_writer.add_summary(part)


def _wandb(runs: Iterable[Logged], folder: Path) -> None:
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True, save_code=False
    )
    for run in runs:
        about: dict[str, Any] = {"project": run.project, "name": run.name, "id": run.key, "config": dict(run.rules)}
        opened = wandb.init(mode="offline", dir=folder, settings=settings, **about)
        pictures = {name: wandb.Image(picture) for name, picture in run.pictures.items()}
        for epoch, numbers in run.curves.items():
            opened.log({**numbers, **(pictures if epoch == run.last else {})}, step=epoch)
        if not run.curves:
            opened.log(pictures)
        opened.summary.update(dict(run.scores))
        opened.finish()
    wandb.teardown()


_WRITERS: Mapping[str, Callable[[Iterable[Logged], Path], None]] = {"tensorboard": _tensorboard, "wandb": _wandb}
