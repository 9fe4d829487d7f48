"""Names of metrics, methods and benchmarks in tables, and the metrics that papers report for a benchmark."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from harness.archive.schema import Run
from harness.registry import BENCHMARKS, METHODS, SEGMENTED


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as a column of a table, with its symbol in the literature."""

    title: str
    lower_is_better: bool = False

    @property
    def heading(self) -> str:
        return f"{self.title} {'↓' if self.lower_is_better else '↑'}"

    @property
    def sign(self) -> int:
        """The factor of a score that makes higher better."""
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
    "iou_mean": Metric(title="mean IoU"),
    "dice_mean": Metric(title="mean Dice"),
    "jaccard": Metric(title="Jaccard"),
    "ber": Metric(title="BER", lower_is_better=True),
    "miou": Metric(title="mIoU"),
    "accuracy": Metric(title="Acc"),
    "nll": Metric(title="100·NLL", lower_is_better=True),  # cells are in percent, and nats are not a fraction
    "ece": Metric(title="ECE", lower_is_better=True),
}

BENCHMARK_ORDER = tuple(SEGMENTED)
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
    "polyp": ("dice_mean", "iou_mean", "dice", "iou", "weighted_f", "s_measure", "e_max", "mae"),
}

SPLITS_APART = ("polyp",)
"""Benchmarks whose test splits are data sets of their own, a column each, and are not averaged."""

USUAL_METRICS = ("iou", "dice", "s_measure", "miou", "accuracy", "nll", "ece")
"""Columns of other benchmarks, as far as they declare or hold these metrics. IoU leads since it chooses the checkpoint, and an empty mask
scores 50 by Sα on thin objects."""

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
    "convpass": "Convpass",
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
"""Titles as in papers; a plug-in's method has its own name."""

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


BACKBONE_TITLES = {
    "mobile_sam": "MobileSAM",
    "vit_b": "SAM ViT-B",
    "vit_l": "SAM ViT-L",
    "vit_h": "SAM ViT-H",
}


def backbone_title(name: str) -> str:
    return BACKBONE_TITLES.get(name, name)


def method_title(name: str) -> str:
    """The title of a method in tables; one that is not known here has its own name. One of peft's tuners (``peft/miss``) names the
    library where a method of this repository has the same name."""
    library, _, own = name.rpartition("/")
    title = METHOD_TITLES.get(own, name)
    return f"{title} of {library}" if library and own in METHOD_ORDER else title


def metric(name: str) -> Metric:
    """Title and direction of a metric; that of a plug-in has its own name, and higher is better."""
    return METRICS.get(name, Metric(title=name))


def benchmark_title(name: str, runs: Iterable[Run] = ()) -> str:
    """The title of a benchmark; for one that is not known here the title in ``runs``, else its name."""
    titles = (run.benchmark_title for run in runs if run.benchmark == name and run.benchmark_title)
    known = getattr(BENCHMARKS.get(name), "title", "") if name in BENCHMARKS.names() else ""
    return str(known) or next(titles, name)


def shown_metrics(name: str, runs: Iterable[Run], *, scored: Collection[str]) -> tuple[str, ...]:
    """The metrics of a benchmark in tables: those of the papers, else those that the benchmark declares in ``runs``, else the usual ones.

    Only ``scored`` ones count; where nothing was scored, all that are declared.
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


UNTUNED = ("decoder", "zeroshot")
"""Methods without an adapted encoder, the stronger one first."""

BASELINES = ("lora", "decoder")
"""Default baselines: the first of these methods that has a row."""
