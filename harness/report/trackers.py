"""Finished runs for the trackers that people use: TensorBoard, Weights & Biases, trackio, MLflow; and as tables, CSV or Parquet.

After the fact and offline, as compute nodes often have no network: curves, α, scores, rules and pictures of a run are read from its record
and what lies beside it, and go into files that the tracker shows, or sends where its user asks it to.
"""

from __future__ import annotations

import os
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
from harness.system.tables import require_form, table_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""Each is also the name of the package that it needs."""
TARGETS = (*TRACKERS, "csv", "parquet")


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
        pictures: ``masks/test/STEM`` -> (S, 2 S, 3) uint8, the predicted mask beside the truth.
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
    """All that a record and the files beside it hold. Raises ValueError: a file beside it is not what was written with it."""
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
    masks = read_masks(path, expected=record.beside.get(MASKS, "")) if path.is_file() else []
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
    if target not in TRACKERS:
        require_form(target)
    elif find_spec(target) is None:
        raise UsageError(f"--to {target} needs the package of that name: pip install 'sam-peft-harness[{target}]'")


def export_records(archive: Archive, keys: Sequence[str], target: str, out: Path) -> int:
    """Write the runs with these keys into a new folder, whole or not at all; how many there are. Raises UsageError: the folder
    holds something, or cannot be written; or what lies beside a record is damaged."""
    require_target(target)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there and holds something; give a folder that is new or empty")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {out.absolute().parent}; make it first, or correct the path")
    try:
        with new_folder(out) as folder:
            if target in TRACKERS:
                runs = (logged(archive.whole(key), archive) for key in keys)
                _WRITERS[target](runs, folder, out.absolute())
            else:
                _tables(archive, set(keys), target, folder)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {os_reason(error)}") from error
    except ValueError as error:
        raise UsageError(f"nothing was written: {error}; sam-peft records check names the file") from error
    return len(keys)


def _tables(archive: Archive, keys: set[str], form: Any, folder: Path) -> None:
    records = [record for record in archive.records if record.key in keys]
    for kind in get_args(Kind):
        table = frame(archive, kind, records)
        if len(table):
            rows: Any = table.to_dict("records")
            (folder / f"{kind}.{form}").write_bytes(table_bytes(rows, list(table.columns), form=form))


def _tensorboard(runs: Iterable[Logged], folder: Path, out: Path) -> None:
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


def _wandb(runs: Iterable[Logged], folder: Path, out: Path) -> None:
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


def _trackio(runs: Iterable[Logged], folder: Path, out: Path) -> None:
    os.environ["TRACKIO_DIR"] = str(folder)  # read when it is imported
    import trackio

    for run in runs:
        opened = trackio.init(
            run.project, name=run.name, config=dict(run.rules), embed=False, auto_log_gpu=False, auto_log_cpu=False
        )
        pictures = {name: trackio.Image(picture) for name, picture in run.pictures.items()}
        for epoch, numbers in run.curves.items():
            opened.log(dict(numbers), step=epoch)
        opened.log({**run.scores, **pictures}, step=run.last)
        opened.finish()


def _mlflow(runs: Iterable[Logged], folder: Path, out: Path) -> None:
    import logging

    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient
    from PIL import Image

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiments: dict[str, str] = {}
    for run in runs:
        if run.project not in experiments:
            # Where the pictures will lie; the database knows them by whole paths.
            place = (out / "artifacts").as_uri()
            experiments[run.project] = client.create_experiment(run.project, artifact_location=place)
        made = client.create_run(experiments[run.project], run_name=run.name, tags={"key": run.key}).info
        numbers = [(epoch, name, value) for epoch, curve in run.curves.items() for name, value in curve.items()]
        numbers += [(run.last, name, value) for name, value in run.scores.items()]
        metrics = [Metric(name, value, 0, epoch) for epoch, name, value in numbers]
        for start in range(0, len(metrics), _BATCH):
            client.log_batch(made.run_id, metrics=metrics[start : start + _BATCH])
        params = [Param(name, str(value)[:_LONGEST]) for name, value in run.rules.items()]
        for start in range(0, len(params), 100):
            client.log_batch(made.run_id, params=params[start : start + 100])
        for name, picture in run.pictures.items():
            file = folder / "artifacts" / made.run_id / "artifacts" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
        client.set_terminated(made.run_id)


_BATCH = 1000
"""Metrics that MLflow takes at once; of parameters 100."""
_LONGEST = 6000
"""Letters of a parameter's value in MLflow."""

_WRITERS: Mapping[str, Callable[[Iterable[Logged], Path, Path], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}
