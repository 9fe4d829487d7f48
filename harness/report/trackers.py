"""Finished runs for TensorBoard and Weights & Biases, and all numbers as CSV.

It works offline, as compute nodes often have no network: curves, α, scores, rules and masks of a run are written to files that the
tracker shows or uploads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from harness.archive.archive import Archive, Kind, epoch_numbers, frame
from harness.archive.masks import MASKS_FILE, read_masks
from harness.archive.schema import Record
from harness.protocols.compare import flat
from harness.report.formats import as_spreadsheet
from harness.system.errors import UsageError, os_reason
from harness.system.files import new_folder

TRACKERS = ("tensorboard", "wandb")
"""Each is also the name of the package that is needed."""
TARGETS = (*TRACKERS, "csv")


def export_records(archive: Archive, keys: Sequence[str], target: str, out: Path) -> None:
    """Write the runs with these keys into a new folder, whole or not at all. Raises UsageError: the folder is not empty or cannot be
    written, or a sidecar file is damaged."""
    if target in TRACKERS and find_spec(target) is None:
        raise UsageError(f"--to {target} needs the package of that name: pip install 'sam-peft-harness[{target}]'")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty; give a new or empty folder")
    write = {"tensorboard": _tensorboard, "wandb": _wandb, "csv": _csv}[target]
    try:
        with new_folder(out) as folder:
            write(archive, keys, folder)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {os_reason(error)}") from error
    except ValueError as error:
        raise UsageError(f"nothing was written: {error}; sam-peft records check names the file") from error


def _csv(archive: Archive, keys: Sequence[str], folder: Path) -> None:
    records = [record for record in archive.records if record.key in set(keys)]
    for kind in (kind for kind in get_args(Kind) if kind != "runs"):
        table = frame(archive, kind, records)
        if len(table):
            (folder / f"{kind}.csv").write_text(as_spreadsheet(table), encoding="utf-8")


def _name(record: Record) -> str:
    run = record.run
    return re.sub(r"[^\w.=,+-]+", "_", f"{run.label}-{run.benchmark}-s{run.seed}-{record.key[:8]}")


def _curves(archive: Archive, record: Record) -> dict[int, dict[str, float]]:
    """Epoch -> quantity -> number: loss, rate, validation, shares of softmax(α)."""
    curves = {int(entry["epoch"]): epoch_numbers(entry) for entry in record.history}
    operations = record.run.operations or []
    for epoch, sites in enumerate(archive.store.architecture(record), start=1):
        for site, shares in sites.items():
            named = operations if len(operations) == len(shares) else [str(index) for index in range(len(shares))]
            alphas = {f"alpha/{site}/{name}": share for name, share in zip(named, shares, strict=True)}
            curves.setdefault(epoch, {}).update(alphas)
    return curves


def _rules(record: Record) -> dict[str, Any]:
    run = record.run
    about = ("method", "label", "benchmark", "backbone", "checkpoint", "protocol", "protocol_hash", "seed")
    rules = {"key": record.key, **{name: getattr(run, name) for name in about}, **flat(run.rules)}
    rules |= {f"{run.method}.{name}": value for name, value in run.method_config.items()}
    rules |= {f"parameters.{name}": count for name, count in record.parameters.items()}
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in rules.items()}


def _scores(record: Record) -> dict[str, float]:
    return {f"{model}/{split}/{metric}": value for model, split, metric, value in record.each_score()}


def _pictures(archive: Archive, record: Record) -> dict[str, Any]:
    """``masks/test/STEM`` -> (S, 2 S, 3) uint8: prediction left, truth right."""
    path = archive.store.masks_path(record.key)
    masks = read_masks(path, expected=record.sidecars.get(MASKS_FILE, "")) if path.is_file() else []
    return {f"masks/{mask.split}/{mask.stem}": mask.coloured() for mask in masks}


def _tensorboard(archive: Archive, keys: Sequence[str], folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    for record in map(archive.whole, keys):
        curves, rules, scores = _curves(archive, record), _rules(record), _scores(record)
        last = max(curves, default=0)
        with SummaryWriter(str(folder / _name(record))) as writer:
            for epoch, numbers in [*curves.items(), (last, scores)]:
                for name, value in numbers.items():
                    writer.add_scalar(name, value, epoch)
            for name, picture in _pictures(archive, record).items():
                writer.add_image(name, picture, last, dataformats="HWC")
            for part in hparams(rules, scores):
                writer.file_writer.add_summary(part)


def _wandb(archive: Archive, keys: Sequence[str], folder: Path) -> None:
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True, save_code=False
    )
    for record in map(archive.whole, keys):
        about: dict[str, Any] = {"project": record.run.protocol, "name": _name(record), "id": record.key}
        opened = wandb.init(mode="offline", dir=folder, settings=settings, config=_rules(record), **about)
        pictures = {name: wandb.Image(picture) for name, picture in _pictures(archive, record).items()}
        curves = _curves(archive, record) or {0: {}}
        for epoch, numbers in sorted(curves.items()):
            opened.log({**numbers, **(pictures if epoch == max(curves) else {})}, step=epoch)
        opened.summary.update(_scores(record))
        opened.finish()
    wandb.teardown()
