"""How tables name metrics and benchmarks, which way is better, and what the papers report a benchmark by."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from harness.archive.schema import Run
from harness.registry import LABELLED, METHODS, SEGMENTED, title_of


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column of a table, under the symbol of the literature."""

    title: str
    lower_is_better: bool = False

    @property
    def heading(self) -> str:
        return f"{self.title} {'↓' if self.lower_is_better else '↑'}"

    @property
    def sign(self) -> int:
        """What a score is multiplied by so that higher is better."""
        return -1 if self.lower_is_better else 1


METRICS = {
    "s_measure": Metric(title="Sα"),
    "e_mean": Metric(title="Eφ"),
    "e_max": Metric(title="Eφ max"),
    "e_adaptive": Metric(title="Eφ adp"),
    "weighted_f": Metric(title="Fβω"),
    "mae": Metric(title="MAE", lower_is_better=True),
    "iou": Metric(title="IoU"),
    "dice": Metric(title="Dice"),
    "jaccard": Metric(title="Jaccard"),
    "ber": Metric(title="BER", lower_is_better=True),
    "miou": Metric(title="mIoU"),
    "accuracy": Metric(title="Acc"),
    "nll": Metric(title="100·NLL", lower_is_better=True),  # cells are in percent, and nats are no share
    "ece": Metric(title="ECE", lower_is_better=True),
}

BENCHMARK_ORDER = (*SEGMENTED, *LABELLED)
"""The papers' order."""

PAPER_METRICS = {
    "kvasir": ("s_measure", "e_mean"),
    "cvc612": ("s_measure", "e_mean"),
    "isic2017": ("jaccard", "dice"),
    "camo": ("s_measure", "e_mean", "weighted_f"),
    "sbu": ("ber",),
    "leaf": ("iou", "dice"),
    "road": ("iou", "dice"),
    "trans10k_v1": ("miou", "accuracy"),
    "trans10k_v2": ("miou", "accuracy"),
}

USUAL_METRICS = ("iou", "dice", "s_measure", "miou", "accuracy", "nll", "ece")
"""What other benchmarks are shown by, as far as they say so or are scored so. IoU leads, as it chooses the
checkpoint: an empty mask scores 50 by Sα on thin objects."""

METHOD_TITLES = {
    "zeroshot": "Zero-shot",
    "full": "Full fine-tuning",
    "decoder": "Decoder alone",
    "bitfit": "BitFit",
    "ssf": "SSF",
    "adapter": "Adapter",
    "adaptformer": "AdaptFormer",
    "vpt": "VPT",
    "lst": "LST",
    "samadapter": "SAM-Adapter",
    "lora": "LoRA",
    "dora": "DoRA",
    "samed": "SAMed",
    "convlora": "Conv-LoRA",
    "naslora": "NAS-LoRA",
    "naspclora": "NAS-PC-LoRA",
    "layernorm": "LayerNorm tuning",
    "mona": "Mona",
    "fact": "FacT",
    "hira": "HiRA",
    "adalora": "AdaLoRA",
    "boft": "BOFT",
    "c3a": "C3A",
    "delora": "DeLoRA",
    "fourierft": "FourierFT",
    "gralora": "GraLoRA",
    "ia3": "IA³",
    "loha": "LoHa",
    "lokr": "LoKr",
    "miss": "MiSS",
    "oft": "OFT",
    "randlora": "RandLoRA",
    "shira": "SHiRA",
    "vera": "VeRA",
}
"""What papers call a method; a plug-in's is called as it calls itself."""

METHOD_ORDER = tuple(METHODS.names())
"""Rows without a study: coarse baselines first, the methods under test last."""

SCORE_TITLES = {
    "best": "",
    "last": "last epoch",
    "merged-exact": "merged exact",
    "merged-conv": "merged conv",
    "merged-calibrated": "merged calibrated",
    "decoded": "decoded",
}


def method_title(name: str) -> str:
    """What tables call a method; one that is not known here as it calls itself. Of peft's tuners (``peft/miss``) one
    whose name a method of this repository has too says so."""
    library, _, own = name.rpartition("/")
    title = METHOD_TITLES.get(own, name)
    return f"{title} of {library}" if library and own in METHOD_ORDER else title


def metric(name: str) -> Metric:
    """Title and direction; a plug-in's own metric is named as it is and higher is taken as better."""
    return METRICS.get(name, Metric(title=name))


def benchmark_title(name: str, runs: Iterable[Run] = ()) -> str:
    """What the benchmark calls itself; of one that is not known here, what it told ``runs``; else its name."""
    told = (run.benchmark_title for run in runs if run.benchmark == name and run.benchmark_title)
    return title_of(name) or next(told, name)


def shown_metrics(name: str, runs: Iterable[Run], *, scored: Collection[str]) -> tuple[str, ...]:
    """What tables show of a benchmark: what the papers report, else what the benchmark itself says in ``runs``, else
    the usual metrics, as far as records hold them; where none was scored, what the benchmark would have been scored
    by."""
    declared = next((run.benchmark_metrics for run in runs if run.benchmark == name and run.benchmark_metrics), ())
    told = [metric for metric in dict.fromkeys(declared) if metric in scored or not scored]
    told.sort(key=lambda metric: USUAL_METRICS.index(metric) if metric in USUAL_METRICS else -1)
    usual = tuple(metric for metric in USUAL_METRICS if metric in scored)
    return PAPER_METRICS.get(name) or tuple(told) or usual or tuple(sorted(scored)) or ("iou",)


def benchmark_rank(name: str) -> tuple[int, str]:
    """Sort key: the papers' order, plug-ins after them by name."""
    return (BENCHMARK_ORDER.index(name) if name in BENCHMARK_ORDER else len(BENCHMARK_ORDER), name)


def method_rank(name: str) -> tuple[int, str]:
    return (METHOD_ORDER.index(name) if name in METHOD_ORDER else len(METHOD_ORDER), name)


BASELINES = ("lora", "decoder")
"""What rows are compared with where nobody says: the first of these methods that is there."""
