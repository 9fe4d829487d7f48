"""The rows of a table: which records are of one method configuration, what a row is called, and which code made its runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

from harness.archive.schema import (
    Code,
    Record,
    Run,
    chosen_from,
    content_hash,
)
from harness.comparison.names import SCORE_TITLES, method_rank
from harness.protocols.keys import first_names, hashed_options, options_with_later
from harness.registry import label_note
from harness.studies import Study, grid_of

if TYPE_CHECKING:
    from harness.archive.archive import Archive

Item = TypeVar("Item")
Group = TypeVar("Group", bound=Hashable)

MISSING = "MISSING"
"""The code of a run that has no record."""


@dataclass(frozen=True, kw_only=True, order=True)
class Sheet:
    """What the records of one table share, so that no column can mix two protocols."""

    protocol: str
    protocol_hash: str
    backbone: str
    checkpoint: str

    @classmethod
    def of(cls, run: Run) -> Sheet:
        return cls(
            protocol=run.protocol, protocol_hash=run.protocol_hash, backbone=run.backbone, checkpoint=run.checkpoint
        )

    @property
    def digest(self) -> str:
        return content_hash(list(astuple(self)))

    def why(self) -> list[str]:
        return [
            f"  protocol {self.protocol}, hash {self.protocol_hash}",
            f"  backbone {self.backbone}, checkpoint {self.checkpoint or 'none (random weights)'}",
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A method configuration, and which of its models is scored (``best``, ``merged-exact``, …).

    Args:
        options: what is changed in the protocol's configuration.
        note: what its configuration says of itself, behind the label wherever that is printed.
        trials: how it was tuned, behind the label in tables.
        records: of this configuration, on every benchmark, with placeholders of planned runs that have none.
    """

    sheet: Sheet
    label: str
    method: str
    score: str = "best"
    note: str = ""
    trials: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Record] = ()

    @property
    def named(self) -> str:
        """The label with what its configuration says of itself."""
        return self.label + self.note

    @property
    def in_words(self) -> str:
        """`named` as part of a sentence."""
        return quoted(self.named)

    @property
    def shown(self) -> str:
        """The label in a table."""
        return self.named + self.trials

    @cached_property
    def runs(self) -> list[Record]:
        """Its records, without the placeholders."""
        return [record for record in self.records if is_run(record)]

    @cached_property
    def on(self) -> Mapping[str, Sequence[Record]]:
        """benchmark -> its records."""
        return by_benchmark(self.records)

    def runs_on(self, benchmark: str) -> list[Record]:
        return [record for record in self.on.get(benchmark, ()) if is_run(record)]

    def finished(self, benchmark: str) -> list[Record]:
        """The runs on one benchmark that ended well, by seed."""
        ended = [record for record in self.on.get(benchmark, ()) if record.code == "OK"]
        return sorted(ended, key=lambda record: (record.run.seed, record.key))

    def why(self, archive: Archive) -> list[str]:
        """The runs of the whole row, for what all of them share (its name, its parameters, its memory)."""
        lines = [*self.sheet.why(), f"  method {self.method}, scored model {self.score}"]
        for record in self.runs:
            counts = ", ".join(f"{name} {count:,}" for name, count in sorted(record.parameters.items()))
            lines.append(
                f"  {record.key}: {record.run.benchmark}, seed {record.run.seed}, {record.code}"
                + (f"; parameters: {counts}" if counts else "")
            )
        return lines


def quoted(label: str) -> str:
    """A label between others in a sentence: in quotation marks where its own commas would read as theirs."""
    return f"“{label}”" if ", " in label or "; " in label else label


def placeholder(run: Run) -> Record:
    """Stands for a planned run that has no record, so that its cell says so."""
    return Record(run=run, key=run.key, code=cast(Code, MISSING))


def is_run(record: Record) -> bool:
    return record.code != MISSING


def is_result(run: Run) -> bool:
    """Whether a table shows the run by itself: not where it was a trial that was not chosen."""
    return not run.tuning or "chosen" in run.tuning


def grouped(items: Iterable[Item], by: Callable[[Item], Group]) -> dict[Group, list[Item]]:
    """Key -> the items that have it, both in the order of the items."""
    groups: dict[Group, list[Item]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return groups


def by_benchmark(records: Iterable[Record]) -> dict[str, list[Record]]:
    """benchmark -> its records; a large folder is gone through once, not once a benchmark."""
    return grouped(records, lambda record: record.run.benchmark)


def results_among(records: Iterable[Record]) -> list[Record]:
    """Those that count (`is_result`), without trials of rows that have tested runs beside them."""
    results = [record for record in records if is_result(record.run)]
    rows = grouped(results, lambda record: (record.run.method, _identity(record.run)))
    alone = set().union(*map(_trials_alone, rows.values()))
    return [record for record in results if record.key not in alone]


def rows_of_records(sheet: Sheet, records: Sequence[Record]) -> list[Row]:
    """A row a method configuration, whatever the sweeps that made its records called it.

    Two configurations of one name get their hash behind it rather than share a cell. Where a benchmark has runs of two
    choices of one row, the one from more trials is the row, and the other has its options behind its name.
    """
    results = (record for record in records if is_result(record.run))
    members = grouped(results, lambda record: (record.run.method, _identity(record.run)))
    labels = {place: _label(alike) for place, alike in members.items()}
    for place, alike in list(members.items()):
        outdone, chosen_by_themselves = _outdone(alike), _trials_alone(alike)
        members[place] = [record for record in alike if record.key not in outdone | chosen_by_themselves]
        for record in alike:
            if record.key in outdone:
                apart = (record.run.method, content_hash(hashed_options(record.run.method, record.run.method_config)))
                members.setdefault(apart, []).append(record)
                labels[apart] = _name(record.run, ())
    rows: list[Row] = []
    for place in sorted(members, key=lambda place: (method_rank(place[0]), labels[place], place[1])):
        alike, label = members[place], labels[place]
        if list(labels.values()).count(label) > 1:
            label += f" #{place[1][:6]}"
        rows.append(
            Row(
                sheet=sheet,
                label=label,
                method=place[0],
                options=alike[0].run.changed,
                records=tuple(alike),
                note=_note(alike),
                trials=_trials(alike),
            )
        )
    return rows


def _identity(run: Run) -> str:
    """A hash that the runs of one row share: of their configuration, with what was tuned in place of what was chosen."""
    tuned = run.tuning.get("grid", {})
    options = {
        name: value for name, value in hashed_options(run.method, run.method_config).items() if name not in tuned
    }
    return content_hash([options, sorted(tuned)] if tuned else options)


def _outdone(members: Iterable[Record]) -> set[str]:
    """Keys of a row's runs in whose place a choice from more trials has put others, on the same benchmark."""
    outdone = set()
    for tuned in by_benchmark(record for record in members if record.run.tuning).values():
        most = max(record.run.trial_runs for record in tuned)
        for runs in grouped(tuned, _choice).values():
            if max(record.run.trial_runs for record in runs) < most:
                outdone |= {record.key for record in runs}
    return outdone


def _choice(record: Record) -> tuple[str, ...]:
    """The values of what was tuned, in the order of their names."""
    return tuple(str(record.run.method_config.get(name)) for name in sorted(record.run.tuning.get("grid", {})))


def _trials_alone(members: Iterable[Record]) -> set[str]:
    """Keys of a row's runs whose seed tuned it and which no tested run was planned with, on the same benchmark.

    A trial that is the best of several was chosen for its luck, too: its test score does not stand among the tested seeds'.
    """
    alone = set()
    for tuned in by_benchmark(record for record in members if record.run.tuning.get("seeds")).values():
        tested = {
            seed
            for record in tuned
            if not set(record.run.planned_seeds) <= set(record.run.tuning["seeds"])
            for seed in record.run.planned_seeds
        }
        if tested:
            alone |= {
                record.key for record in tuned
                if record.run.seed in record.run.tuning["seeds"] and record.run.seed not in tested
            }  # fmt: skip
    return alone


def _note(records: Sequence[Record]) -> str:
    """What the configuration says of itself (`harness.methods.configs.MethodConfig.label_note`); nothing where the runs of a row do
    not agree or the method is not known here."""
    notes = {label_note(record.run.method, record.run.method_config) for record in records}
    return f" ({note})" if len(notes) == 1 and (note := notes.pop()) else ""


def _trials(records: Iterable[Record]) -> str:
    """``, tuned, 4 trials``; empty for rows that were not."""
    counts = sorted({len(record.run.tuning.get("trials", ())) for record in records} - {0})
    return f", tuned, {'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} trials" if counts else ""


def _label(records: Sequence[Record]) -> str:
    """What the sweeps called it if they agree; else the method with what is changed in it."""
    variants = {record.run.variant for record in records}
    if len(variants) == 1:
        return variants.pop()
    return _name(records[0].run, records[0].run.tuning.get("grid", {}))


def _name(run: Run, tuned: Collection[str]) -> str:
    """The method with what is changed in it, but for what is tuned."""
    names = sorted(run.changed.keys() - set(tuned))
    changed = ",".join(f"{name}={run.changed[name]}" for name in names)
    return f"{run.method}[{changed}]" if changed else run.method


def rows_of_study(sheet: Sheet, study: Study, records: Sequence[Record]) -> list[Row]:
    """A row an entry of the study and model of it that is scored, whether it has records on the study's benchmarks or not."""
    by_method = grouped(records, lambda record: record.run.method)
    rows = []
    for entry in study.entries:
        fitting = [record for record in by_method.get(entry.method, []) if is_entry(record, entry.options)]
        if grid := grid_of(entry.method, entry.options, study.tune):
            members = _own_choice(study, grid, [record for record in fitting if "chosen" in record.run.tuning])
        else:  # what a row names itself is not tuned, even where another study has tuned it
            members = [record for record in fitting if record.run.changed.keys() <= entry.options.keys()] or fitting
        here = [
            record for record in members if record.run.benchmark in study.benchmarks and record.run.seed in study.seeds
        ]
        row = Row(
            sheet=sheet, label=entry.label, method=entry.method, options=entry.options, records=tuple(here),
            note=_note(members), trials=_trials(here),
        )  # fmt: skip
        scores = entry.scores or study.table.scores
        for score in scores:
            title = SCORE_TITLES.get(score, score)
            label = entry.label + (f" ({title})" if title and len(scores) > 1 else "")
            rows.append(replace(row, label=label, score=score))
    return rows


def _own_choice(study: Study, grid: Mapping[str, Sequence[Any]], chosen: Sequence[Record]) -> list[Record]:
    """Without what only other studies chose, where a label tells what this one did.

    A record holds one label, so one of this study may have another's that chose the same from more runs: it is the options
    that decide, and where no label is this study's, all are taken.
    """
    own: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record in chosen:
        on = study.tune_on or (record.run.benchmark,)
        if chosen_from(record.run.tuning, grid=grid, on=on):
            own.setdefault(_chooser(study, record.run), []).append(
                hashed_options(record.run.method, record.run.method_config)
            )
    return [
        record
        for record in chosen
        if (options := own.get(_chooser(study, record.run))) is None
        or hashed_options(record.run.method, record.run.method_config) in options
    ]


def _chooser(study: Study, run: Run) -> tuple[str, ...]:
    """What the runs that share one choice of tuned options have in common."""
    model = (run.protocol_hash, run.backbone, run.checkpoint, str(run.rules.get("decoder", "")))
    return model if study.tune_on else (*model, run.benchmark)


def is_entry(record: Record, options: Mapping[str, Any]) -> bool:
    """Whether a run's configuration is the protocol's with ``options`` and nothing else changed, but for what tuning
    chose; labels may differ."""
    config = options_with_later(record.run.method, record.run.method_config)
    config, asked = plain_values(config), plain_values(first_names(options))
    has_them = all(name in config and value == config[name] for name, value in asked.items())
    if not has_them or record.run.changed.keys() <= options.keys():
        return has_them
    chosen = record.run.tuning.get("chosen", {})
    return record.run.changed.keys() <= options.keys() | chosen.keys()


def plain_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """With lists where a configuration has tuples, as JSON gives them back."""

    def plain(value: Any) -> Any:
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return {name: plain(value) for name, value in config.items()}


def version_of(record: Record) -> str:
    """The code that made a record: its snapshot, or commit with the hash of uncommitted changes. It moves with every comment."""
    environment = record.environment
    commit, dirty = environment.get("commit", "")[:10], environment.get("dirty", "")[:6]
    return environment.get("snapshot", "")[:12] or (commit + (f"+{dirty}" if dirty else "")) or "unknown"


def begun_by(record: Record) -> str:
    """Words about a record that other number-making code, or another machine or torch, began; empty for any other."""
    codes, machines = (record.environment.get(name, "") for name in ("begun_by", "begun_on"))
    return (f", begun by other code ({codes})" if codes else "") + (f", begun on {machines}" if machines else "")


def stale_versions(records: Iterable[Record]) -> frozenset[str]:
    """Every version but that of the record finished last."""
    known = list(records)
    return frozenset({version_of(record) for record in known} - {version_of(_latest(known))} if known else ())


@dataclass(frozen=True, kw_only=True)
class CodeDifferences:
    """What a table says of the code behind its records. What can touch a number has fingerprints of its own
    (`Record.environment`: ``numbers``, ``numbers_method``, ``numbers_benchmark``, hashes of code without comments).

    Args:
        touched: keys of records whose number-making code is not that of the latest record.
        mixed: keys of records that other number-making code began than finished them.
        untold: versions, other than the latest, whose records do not say what code made their numbers.
    """

    touched: frozenset[str]
    mixed: frozenset[str]
    untold: tuple[str, ...]


def code_differences(records: Sequence[Record]) -> CodeDifferences:
    """Compare the shared code with the latest record's, a method's with the latest of that method, a benchmark's likewise."""
    told = [record for record in records if record.environment.get("numbers")]
    touched: set[str] = set()
    parts: tuple[tuple[str, Callable[[Record], str]], ...] = (
        ("numbers", lambda record: ""),
        ("numbers_method", lambda record: record.run.method),
        ("numbers_benchmark", lambda record: record.run.benchmark),
    )
    for name, kind in parts:
        for value in {kind(record) for record in told}:
            alike = [record for record in told if kind(record) == value]
            newest = _latest(alike).environment.get(name)
            touched |= {record.key for record in alike if record.environment.get(name) != newest}
    untold = {version_of(record) for record in records if not record.environment.get("numbers")}
    newest_version = {version_of(_latest(records))} if records else set()
    mixed = frozenset(record.key for record in records if record.environment.get("begun_by"))
    return CodeDifferences(touched=frozenset(touched), mixed=mixed, untold=tuple(sorted(untold - newest_version)))


def _latest(records: Sequence[Record]) -> Record:
    return max(records, key=lambda record: (record.finished, record.key))
