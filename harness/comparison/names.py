"""Names of metrics, methods and benchmarks in tables (`harness/data/titles.yaml`), their order, and which metrics a table shows."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from harness.archive.schema import Run
from harness.registry import BENCHMARKS, METHODS, SEGMENTED
from harness.system.yaml_files import read_yaml

TITLES: dict[str, Any] = read_yaml(Path(__file__).parents[1] / "data" / "titles.yaml", what="titles")
PAPER_METRICS: dict[str, tuple[str, ...]] = {name: tuple(metrics) for name, metrics in TITLES["papers"].items()}
SCORE_TITLES: dict[str, str] = TITLES["models"]

BENCHMARK_ORDER = tuple(SEGMENTED)
"""The papers' order."""

METHOD_ORDER = tuple(METHODS.names())
"""Rows without a study: coarse baselines first, the methods under test last."""

USUAL_METRICS = ("iou", "dice", "s_measure", "miou", "accuracy", "nll", "ece")
"""Columns of benchmarks that no paper reports, as far as they declare or hold these metrics. IoU leads since it chooses the checkpoint, and
an empty mask scores 50 by Sα on thin objects."""

SPLITS_APART = ("polyp",)
"""Benchmarks whose test splits are data sets of their own, a column each, and are not averaged."""

TESTED_TOGETHER = ("trans10k_v1",)
"""Benchmarks whose column is that of all test splits, also before anything is scored."""

NOT_ADAPTED = ("decoder", "zeroshot")
"""Methods without an adapted encoder, the stronger one first."""

BASELINES = ("lora", "decoder")
"""Default baselines: the first of these methods that has a row."""


def metric_title(name: str) -> str:
    """Its symbol in the literature; a metric of a plug-in has its own name."""
    return str(TITLES["metrics"].get(name, name))


def sign(metric: str) -> int:
    """The factor of a score that makes higher better."""
    return -1 if metric in TITLES["lower_is_better"] else 1


def heading(metric: str) -> str:
    """``BER ↓``"""
    return f"{metric_title(metric)} {'↑' if sign(metric) > 0 else '↓'}"


def method_title(name: str) -> str:
    """The title of a method in tables; one that is not known here has its own name. One of peft's tuners (``peft/miss``) names the
    library where a method of this repository has the same name."""
    library, _, own = name.rpartition("/")
    title = TITLES["methods"].get(own, name)
    return f"{title} of {library}" if library and own in METHOD_ORDER else title


def benchmark_title(name: str, runs: Iterable[Run] = ()) -> str:
    """The title of a benchmark; for one that is not known here the title in ``runs``, else its name."""
    titles = (run.benchmark_title for run in runs if run.benchmark == name and run.benchmark_title)
    known = getattr(BENCHMARKS.get(name), "title", "") if name in BENCHMARKS.names() else ""
    return str(known) or next(titles, name)


def shown_metrics(name: str, runs: Iterable[Run], *, scored: Collection[str]) -> tuple[str, ...]:
    """The metrics of a benchmark in tables: those of the papers, else those that the benchmark declares in ``runs``, else the usual ones.

    Of the latter two only ``scored`` ones count; where nothing was scored, all that are declared.
    """
    declared = next((run.benchmark_metrics for run in runs if run.benchmark == name and run.benchmark_metrics), ())
    declared_scored = [metric for metric in dict.fromkeys(declared) if metric in scored or not scored]
    declared_scored.sort(key=lambda metric: USUAL_METRICS.index(metric) if metric in USUAL_METRICS else -1)
    usual = tuple(metric for metric in USUAL_METRICS if metric in scored)
    return PAPER_METRICS.get(name) or tuple(declared_scored) or usual or tuple(sorted(scored)) or ("iou",)


def benchmark_rank(name: str) -> tuple[int, str]:
    """Sort key: the papers' order, plug-ins after them by name."""
    return (BENCHMARK_ORDER.index(name) if name in BENCHMARK_ORDER else len(BENCHMARK_ORDER), name)


def method_rank(name: str) -> tuple[int, str]:
    return (METHOD_ORDER.index(name) if name in METHOD_ORDER else len(METHOD_ORDER), name)
