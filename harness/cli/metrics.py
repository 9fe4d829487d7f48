"""``sam-peft metrics``: score a folder of predictions against a folder of masks, paired by file name, wherever they came from."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.archive.store import require_writable
from harness.check import from_mapping, parse_assignments
from harness.cli.command import CommandParser, command, require_effect, verb
from harness.evaluation.conventions import CLASSES, METRICS, Conventions, Overlap, Resolution
from harness.system.errors import UsageError, os_reason
from harness.system.streams import counter
from harness.system.tables import form_of, require_form, table_bytes

if TYPE_CHECKING:
    from harness.evaluation.scorer import SplitScorer, Task

FIRST = ("conventions", "stem")
"""Columns of the scores of every image, before the metrics."""
DEFAULT = ("s_measure", "e_mean", "weighted_f", "mae", "iou", "dice")


def parser() -> CommandParser:
    p = command(
        "metrics",
        __doc__,
        epilog=f"Metrics: {', '.join(METRICS)}. See docs/metrics.md for what each is, and each convention.",
    )
    p.add_argument(
        "--pred", type=Path, required=True, metavar="DIR", help="predictions: grey images, or .npy in [0, 1]"
    )
    p.add_argument("--gt", type=Path, required=True, metavar="DIR", help="masks")
    p.add_argument(
        "--metrics", metavar="A,B", help=f"names, or 'all' (default: {','.join(DEFAULT)}; {','.join(CLASSES)})"
    )
    p.add_argument("--num-classes", type=int, default=2, metavar="N", help="more than 2: files hold class indices")
    p.add_argument(
        "--foreground", choices=("half", "nonzero"), help="mask levels above 127 (half, default), or above 0"
    )
    p.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a convention, such as empty=0"
    )
    p.add_argument("--conventions", action="store_true", help="score the same predictions under every convention")
    p.add_argument("--input-size", type=int, metavar="S", help="side for resolution=input (default: 1024)")
    p.add_argument(
        "--stretched",
        action="store_true",
        help="predictions are what a network made of images stretched to its input; they are stretched back",
    )
    p.add_argument("--partial", action="store_true", help="score what both folders have, instead of asking for all")
    p.add_argument("--per-image", type=Path, metavar="CSV", help="write the scores of every image")
    p.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: all cores)")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    side = 1024 if args.input_size is None else args.input_size
    if not 2 <= args.num_classes <= 255 or args.workers < 0 or not 1 <= side <= 2**14:
        raise UsageError("--num-classes is 2 to 255, --input-size 1 to 16384, and --workers not negative")
    task: Task = "binary" if args.num_classes == 2 else "multiclass"
    metrics = chosen_metrics(args.metrics, multiclass=task == "multiclass")
    parts = (item.partition("=") for item in args.set)
    items = [name.replace("-", "_") + equals + value for name, equals, value in parts]
    conventions = from_mapping(Conventions, parse_assignments(items, example="--set empty=1.0"), where="--set")
    if task == "multiclass":
        require_effect(args, "foreground", without="with --num-classes, where files hold class indices")
    if conventions.resolution != "input" and not args.conventions:
        require_effect(args, "input-size", without="without --set resolution=input or --conventions")
    if args.per_image:
        require_place(args.per_image)
        require_form(form_of(args.per_image))
    variants = variants_of(conventions, multiclass=task == "multiclass") if args.conventions else {"": conventions}

    from harness.evaluation.folders import FolderScoring, pair_predictions, require_levels, score_folders
    from harness.evaluation.scorer import SplitScorer

    scorers = {
        name: SplitScorer(metrics, task=task, num_classes=args.num_classes, conventions=rules)
        for name, rules in variants.items()
    }
    pairs = pair_predictions(args.pred, args.gt, partial=args.partial)
    if task == "binary":
        require_levels(pairs)
    scoring = FolderScoring(
        scorers=scorers, input_size=side, foreground=args.foreground or "half", stretched=args.stretched
    )
    with counter("scoring", len(pairs)) as progress:
        score_folders(pairs, scoring, workers=args.workers, progress=progress)
    summaries = {name: scorer.summary() for name, scorer in scorers.items()}
    if args.per_image:
        write_per_image(args.per_image, scorers, metrics)
    ignored = next(iter(scorers.values())).ignored()
    if ignored:
        named = ", ".join(ignored[:3]) + (", …" if len(ignored) > 3 else "")
        left_out = f"left out, as every pixel of the mask is ignored: {len(ignored)} of {len(pairs)} ({named})"
        print(left_out, file=sys.stderr)
    images = len(pairs) - len(ignored)
    if args.json:
        scores = summaries if args.conventions else summaries[""]
        print(json.dumps({"images": images, "scores": scores}, indent=1))
    else:
        print_table(summaries, images=images)
    return 0


def chosen_metrics(text: str | None, *, multiclass: bool) -> tuple[str, ...]:
    if text is None:
        return CLASSES if multiclass else DEFAULT
    if text == "all":
        return CLASSES if multiclass else METRICS
    names = tuple(name.strip().lower().replace("-", "_") for name in text.split(",") if name.strip())
    if not names:
        raise UsageError("--metrics names no metric")
    return names


def variants_of(plain: Conventions, *, multiclass: bool) -> dict[str, Conventions]:
    """The conventions, each of them changed alone, and those that AutoGluon released."""
    resolution: Resolution = "input" if plain.resolution == "native" else "native"
    sizes = {f"resolution={resolution}": replace(plain, resolution=resolution)}
    if multiclass:
        return {"as given": plain, **sizes}
    beta2 = 0.3 if plain.weighted_f_beta2 != 0.3 else 1.0
    overlap: Overlap = "accumulated" if plain.overlap == "per-image" else "per-image"
    empty = 0.0 if plain.empty else 1.0
    return {
        "as given": plain,
        **sizes,
        f"weighted_f_beta2={beta2:g}": replace(plain, weighted_f_beta2=beta2),
        f"overlap={overlap}": replace(plain, overlap=overlap),
        f"empty={empty:g}": replace(plain, empty=empty),
        f"min_max={str(not plain.min_max).lower()}": replace(plain, min_max=not plain.min_max),
        "as released": Conventions(resolution="input", weighted_f_beta2=0.3),
    }


def require_place(path: Path) -> None:
    """Refuse a place that the scores of every image cannot be written to, before they are computed. Raises UsageError: a folder,
    below none, or not to be written."""
    if os.path.isdir(path):
        raise UsageError(f"--per-image {path} is a folder; name a file in it, such as {path / 'images.csv'}")
    if os.path.exists(path):  # also a pipe, whose folder nobody can write to
        if not os.access(path, os.W_OK):
            raise UsageError(f"--per-image {path} cannot be written; name another file")
        if os.path.isfile(path) and not _is_own(path):
            raise UsageError(f"--per-image {path} is there and holds something else; name another file, or remove it")
    elif not os.path.isdir(path.parent):
        raise UsageError(f"--per-image {path}: no folder {path.parent}; make it first, or name a file elsewhere")
    else:
        require_writable(path.parent, named="folder", option="--per-image")


def _is_own(path: Path) -> bool:
    """Whether a file is empty, or what `write_per_image` wrote."""
    with path.open(encoding="utf-8", errors="replace") as file:
        start = file.read(100)
    return not start or start.startswith("PAR1" if form_of(path) == "parquet" else f"{','.join(FIRST)},")


def write_per_image(path: Path, scorers: dict[str, SplitScorer], metrics: tuple[str, ...]) -> None:
    rows = (
        {FIRST[0]: name, FIRST[1]: stem, **{metric: values[metric] for metric in metrics}}
        for name, scorer in scorers.items()
        for stem, values in scorer.images().items()
    )
    try:
        path.write_bytes(table_bytes(rows, [*FIRST, *metrics], form=form_of(path)))
    except OSError as error:
        raise UsageError(f"--per-image {path}: {os_reason(error)}") from error


def print_table(summaries: dict[str, dict[str, float]], *, images: int) -> None:
    from tabulate import tabulate

    if list(summaries) == [""]:
        heads = ["metric", f"{images} images"]
        rows = [[metric, f"{value:.4f}"] for metric, value in summaries[""].items()]
    else:
        metrics = list(next(iter(summaries.values())))
        heads = [f"{images} images", *metrics]
        rows = [[name, *(f"{summary[metric]:.4f}" for metric in metrics)] for name, summary in summaries.items()]
    print(tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True))
