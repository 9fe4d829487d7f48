"""`Run` and `Record`, the plain data that planning, workers and reports exchange. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

from harness.evaluation.conventions import E_MEASURES
from harness.models.known import RENAMED
from harness.protocols.keys import content_hash as content_hash
from harness.protocols.keys import first_backbone as first_backbone
from harness.protocols.keys import hashed_options, hashed_rules, rule
from harness.system.text import limited_to

SCHEMA_VERSION = 3
"""Version of a record's file (`harness.archive.older` reads the earlier ones). 2: α history in the sidecar file
``<key>.architecture.csv``. 3: the origin of the data and of the test images, and counts of ignored images, as fields."""

KEY_VERSION = 1
"""Version of what `Run.key` hashes. It changes only when the same content gives another result."""

Code = Literal["OK", "OOM", "DIVERGED", "BLANK", "NO_DATA", "TIMEOUT", "ERROR"]
"""Outcome of a run: OK, or the reason code of its failure."""

Scores = dict[str, dict[str, dict[str, float]]]
"""model -> split -> metric -> value in [0, 1] (nats for ``nll``).

Models: ``best`` (checkpoint chosen on validation), ``last``, and of the best checkpoint the merged model
``merged-exact``, ``merged-conv``, ``merged-calibrated`` and, where an architecture was searched, ``decoded``: every cell
reduced to its strongest operation (older records have none). Splits: ``val`` and tests (``test``; or ``easy``, ``hard``, ``all``).
"""


NOT_IN_KEY = (
    "label", "protocol", "protocol_hash", "origin", "split", "split_rule", "data_note", "data_fingerprint", "tuning", "changed",
    "planned_seeds", "planned_benchmarks", "benchmark_title", "benchmark_metrics", "label_note", "never_reached", "operations",
)  # fmt: skip
"""Fields of a run that do not determine its result."""


CONTENT = "content-"
"""How a fingerprint of the files' contents begins; their hash, ``-`` and the hash of their sizes follow. Older fingerprints are the hash
of sizes alone."""


Origin = Literal["files", "generated", "generated-files"]
"""Origin of images: files; what the harness wrote for a protocol with ``data: sample``; or such images in a folder that was given."""
UNTRAINED = "untrained"
"""The test split of images of the training part that nothing is trained on (``test_given_first``)."""
TestImages = Literal["", "published", "given", "carved"]
"""Which images are tested: those that others published, those that the data or a list give, or some carved out; empty if unknown."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One (method, benchmark, backbone, protocol, seed), fully resolved; equal content has an equal key everywhere.

    Args:
        method: canonical name of the method.
        method_config: every field of its configuration.
        label: the name of its row in progress, prices and `sam-peft show`, such as ``naslora[rank=6]``; tables name rows themselves
            (`harness.comparison.rows`).
        benchmark: canonical name of the benchmark.
        backbone: name in the backbone catalogue; old names are replaced by today's.
        checkpoint: hash of the checkpoint's bytes (``sha256-…``), empty for random weights; older records have 16 hex digits
            from its size, its first and its last MiB.
        protocol: name of the protocol.
        protocol_hash: hash of the whole protocol with overrides on the command line.
        rules: the protocol resolved for this benchmark (per-benchmark overrides applied).
        seed: seed of data order, head and method.
        manifest: hash of the split manifest (stems by split); where the split follows the seed, of all its stems.
        origin: origin of its images; its scores rank methods only if they are ``files``.
        split: which images are tested.
        split_rule: how the splits were made, in words.
        data_note: a note on the data, which tables show.
        data_fingerprint: hash of the contents of the files that the manifest names; of their sizes in older records, empty in the
            oldest. Runs of equal keys whose fingerprints are not `same_data` were made from different data.
        tuning: ``grid`` (field -> values) of a run whose options were tuned. A chosen one also has ``chosen`` (field -> value)
            and ``edge`` (fields chosen at an end of their grid). Of its trials it has ``trials`` (options, validation ``score``, keys,
            hours), ``metric``, ``on`` (benchmarks), ``seeds`` and ``hours``.
        changed: the fields of ``method_config`` that differ from the protocol's for this method; a study finds its rows by them.
        planned_seeds, planned_benchmarks: what its sweep planned for this method configuration, so that tables show gaps; empty in
            older records.
        benchmark_title, benchmark_metrics: the benchmark's own title and metrics for tables; empty in older records.
        label_note: what tables add to the method's name where the row is not what a reader expects under that name.
        never_reached: which part of the method its epochs never reach, in words; empty if they reach everything.
        operations: names of the operations that α weights, in the order of its shares; empty for a method without α.
    """

    method: str
    method_config: dict[str, Any]
    label: str
    benchmark: str
    backbone: str
    checkpoint: str
    protocol: str
    protocol_hash: str
    rules: dict[str, Any]
    seed: int
    manifest: str
    split_rule: str
    origin: Origin = "files"
    split: TestImages = ""
    data_note: str = ""
    data_fingerprint: str = ""
    tuning: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)
    planned_seeds: list[int] = field(default_factory=list, compare=False)
    planned_benchmarks: list[str] = field(default_factory=list, compare=False)
    benchmark_title: str = field(default="", compare=False)
    benchmark_metrics: list[str] = field(default_factory=list, compare=False)
    label_note: str | None = field(
        default=None, compare=False
    )  # of these three, None in a file: `harness.archive.older`
    never_reached: str | None = field(default=None, compare=False)
    operations: list[str] | None = field(default=None, compare=False)

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # an unknown field would not be in the key

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", RENAMED.get(self.backbone, self.backbone))

    @property
    def is_generated(self) -> bool:
        """Whether its images are generated, so that its scores do not rank methods."""
        return self.origin != "files"

    @cached_property
    def key(self) -> str:
        """Content hash of what determines the result, without labels (`NOT_IN_KEY`). Data are identified by their stems;
        ``data_fingerprint`` detects other files of the same names. Computed once, so a changed run is made with `dataclasses.replace`."""
        content = {name: value for name, value in vars(self).items() if name not in NOT_IN_KEY}
        content["backbone"] = first_backbone(self.backbone)
        content["rules"] = hashed_rules(self.rules)
        content["method_config"] = hashed_options(self.method, self.method_config)
        return content_hash([KEY_VERSION, content])

    @property
    def is_trial(self) -> bool:
        """Whether it was only tried while options were tuned: its scores are not results."""
        return bool(self.tuning) and "chosen" not in self.tuning

    def rule(self, name: str) -> Any:
        """A rule's value; for a run that is older than the rule, the one that every run had."""
        return rule(self.rules, name)

    @property
    def trial_runs(self) -> int:
        """How many runs its options were chosen from; 0 where nothing was tuned."""
        return sum(len(trial["keys"]) for trial in self.tuning.get("trials", ()))


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of a run.

    Args:
        key: `Run.key`.
        code: ``OK`` or the reason code.
        message: one line about a failure, empty otherwise.
        scores: see `Scores`.
        selected_epoch: epoch (1-based) of the best checkpoint.
        parameters: ``encoder``, ``decoder`` and ``trainable`` counts of trained parameters, ``total`` of the segmenter.
        cost: ``step_time_s`` (median), ``peak_memory_bytes``, ``train_time_s``, ``wall_time_s``, ``gpu_hours`` (0
            without a GPU) and ``steps``; ``stage_NAME_s`` (`harness.experiment.environment`) of the attempt that
            finished it.
        history: one entry per epoch: ``epoch``, ``loss``, ``lr``, ``val`` (metrics), ``seconds``, ``updates`` by roles.
        budget: ``weight_updates``; of a method with an architecture also ``alpha_updates``, ``alpha_lr_sum`` (its rate
            over its updates: how far α could move) and ``share_cap`` (the largest share of softmax(α) that this allows). Older records
            hold the counts alone.
        architecture: α history: one entry per epoch, site -> softmax(α).
        merge: merge reports by mode, as plain dicts.
        counts: images used: ``train``, ``val`` and each test split. Under a rule ``prompt`` also ``unprompted``: test images without
            an object to point out.
        ignored: test split -> images that it leaves out since every pixel of their masks is ignored, where there are any.
        available: images of each split before the protocol's limits; empty in older records.
        foreground: test split -> mean share of foreground that the best checkpoint predicts, over that of the masks; near 0 the
            predictions are almost empty. Missing in older records, and for several classes.
        environment: ``torch``, ``python``, ``device``, ``host``, ``commit``, ``dirty`` (hash of the diff) and ``snapshot``.
            On a GPU also ``driver``, ``cuda``, ``cudnn`` and ``attention`` (how SAM's blocks attend).
            ``numbers``, ``numbers_method`` and ``numbers_benchmark`` are fingerprints of the code that makes numbers;
            missing in older records. ``begun_by`` and ``begun_on`` name other code, and another machine or torch, that
            began the run. ``workers``: devices of a run on several, where memory and times are those of one.
        attempts: how many times the run was started.
        finished: UTC time in ISO format.
        sidecars: ending of a sidecar file (``images.csv``) -> digest of its bytes. The store fills it; older records have none. In
            the file the field is called ``beside``.
    """

    run: Run
    key: str
    code: Code
    message: str = ""
    scores: Scores = field(default_factory=dict)
    selected_epoch: int | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    budget: dict[str, float] = field(default_factory=dict)
    architecture: list[dict[str, list[float]]] = field(default_factory=list)
    merge: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    available: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    foreground: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    attempts: int = 1
    finished: str = ""
    sidecars: dict[str, str] = field(default_factory=dict, compare=False)
    schema_version: int = SCHEMA_VERSION

    def each_score(self) -> Iterator[tuple[str, str, str, float]]:
        """Scored model, split, metric, value."""
        for model, splits in self.scores.items():
            for split, values in splits.items():
                yield from ((model, split, metric, value) for metric, value in values.items())

    @property
    def limits(self) -> dict[str, str]:
        """Split -> its images, as ``407 → 400`` where the protocol limits them."""
        used: dict[str, int] = {name: self.counts[name] for name in ("train", "val") if name in self.counts}
        used.update(sorted(self.tested.items()))
        return {name: limited_to(self.available.get(name, count), count) for name, count in used.items()}

    @property
    def tested(self) -> dict[str, int]:
        """Test split -> number of images that are scored."""
        no_test = {"train", "val", "unprompted"}
        return {
            split: count - self.ignored.get(split, 0) for split, count in self.counts.items() if split not in no_test
        }


LARGEST_NLL = 88.0
"""In nats: minus the logarithm of the smallest normal single float, rounded up."""


def largest(metric: str) -> float:
    """The largest value of a metric; the smallest is 0. The E-measure is divided by pixels - 1, so that a perfect
    prediction of N pixels scores N / (N - 1): 1.1 is an image of eleven pixels."""
    return 1.1 if metric in E_MEASURES else LARGEST_NLL if metric == "nll" else 1.0


def update_budget(history: Sequence[Mapping[str, Any]], *, alpha_lr_sum: float, operations: int) -> dict[str, float]:
    """``weight_updates``, and where there is an architecture ``alpha_updates``, ``alpha_lr_sum``, ``share_cap``.

    Args:
        history: of a record; ``updates`` holds those of an epoch by roles (``weights``, ``architecture``, ``weights+architecture``).
        alpha_lr_sum: the architecture's rate summed over its updates.
        operations: how many a cell mixes.
    """
    budget = {"weight_updates": 0.0} | counted_updates(history)
    if operations > 1:
        budget = {"alpha_updates": 0.0} | budget
        budget["alpha_lr_sum"] = alpha_lr_sum
        budget["share_cap"] = share_cap(alpha_lr_sum, operations=operations)
    return budget


def counted_updates(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``weight_updates`` and ``alpha_updates`` counted in a history, as far as there were any."""
    counts: dict[str, float] = {}
    for entry in history:
        for roles, updates in entry.get("updates", {}).items():
            for role in roles.split("+"):
                name = "alpha_updates" if role == "architecture" else "weight_updates"
                counts[name] = counts.get(name, 0.0) + updates
    return counts


def share_cap(shift: float, *, operations: int) -> float:
    """The largest share of softmax(α) within reach: one entry moves up from 0 by ``shift``, all others down by the same amount.

    Adam's steps are about the rate, whatever the gradient. So the rate summed over α's updates is about how far α can move. Two things
    are not counted. α starts at N(0, 0.001²). And Adam's steps exceed the rate where gradients grow, by up to (1 − β₁)/√(1 − β₂):
    3.2 times with betas (0.9, 0.999), 16 times with DARTS's (0.5, 0.999).
    """
    return 1 / (1 + (operations - 1) * math.exp(-2 * shift))


def plain_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with lists in place of tuples, as JSON has them."""

    def plain(value: Any) -> Any:
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return {name: plain(value) for name, value in config.items()}


def chosen_from(tuning: Mapping[str, Any], *, grid: Mapping[str, Iterable[Any]], on: Sequence[str]) -> bool:
    """Whether ``tuning`` holds a choice from these values on these benchmarks; numbers may be text, as on a command line."""
    wanted = {name: _plain(values) for name, values in grid.items()}
    recorded = {name: _plain(values) for name, values in tuning.get("grid", {}).items()}
    return "chosen" in tuning and recorded == wanted and sorted(tuning.get("on", ())) == sorted(on)


def is_from_more(later: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Whether the later of two choices on the same benchmarks had every value of the earlier one, so that it replaces it."""
    grids = [
        {name: set(_plain(values)) for name, values in tuning.get("grid", {}).items()} for tuning in (earlier, later)
    ]
    same = grids[0].keys() == grids[1].keys() and sorted(earlier.get("on", ())) == sorted(later.get("on", ()))
    return same and all(values <= grids[1][name] for name, values in grids[0].items())


def _plain(values: Iterable[Any]) -> list[str]:
    return sorted(_as_text(value) for value in values)


def _as_text(value: Any) -> str:
    try:
        return str(float(value))
    except (TypeError, ValueError):
        return str(list(value) if isinstance(value, tuple) else value)


_BESIDE_TRAINING = ("start", "loading", "testing", "merging", "other")
"""Stages of a run (`harness.experiment.environment.Stopwatch`); ``start`` is of older records."""


def seconds_of(cost: Mapping[str, float]) -> tuple[float, bool]:
    """Seconds that a run took, and whether they cover all of it: older records have those of training alone.

    Training and validation count all attempts at a run, the other stages the last.
    """
    trained = cost.get("wall_time_s", 0.0)
    others = [cost[f"stage_{name}_s"] for name in _BESIDE_TRAINING if f"stage_{name}_s" in cost]
    return (trained + math.fsum(others), True) if others else (trained, False)
