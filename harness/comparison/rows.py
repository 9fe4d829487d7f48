"""The rows of a table: which records are of one method configuration, and what a row is called."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from harness.archive.schema import (
    OPTIONS_ADDED_LATER,
    Record,
    Run,
    chosen_from,
    content_hash,
    first_names,
    hashed_options,
)
from harness.comparison.names import method_rank
from harness.registry import label_note
from harness.studies import Study
from harness.studies.grids import grid_of


@dataclass(frozen=True, kw_only=True)
class Group:
    """Records of one method configuration.

    Args:
        scores: which of its models are scored, a row each.
        options: what is changed in the protocol's configuration.
    """

    label: str
    method: str
    members: Sequence[Record]
    scores: tuple[str, ...] = ("best",)
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def on(self) -> Mapping[str, Sequence[Record]]:
        """benchmark -> its members."""
        return by_benchmark(self.members)


def by_benchmark(records: Iterable[Record]) -> dict[str, list[Record]]:
    """benchmark -> its records; a large folder is gone through once, not once a benchmark."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.run.benchmark, []).append(record)
    return found


def groups_of_records(records: Sequence[Record]) -> list[Group]:
    """A row a method configuration, whatever the sweeps that made its records called it.

    Two configurations of one name get their hash behind it rather than share a cell. Where a benchmark has runs of two
    choices of one row, the one from more trials is the row, and the other has its options behind its name.
    """
    members: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if is_result(record.run):
            members.setdefault((record.run.method, _identity(record.run)), []).append(record)
    labels = {place: _label(mine) for place, mine in members.items()}
    for place, mine in list(members.items()):
        outdone = _outdone(mine)
        members[place] = [record for record in mine if record.key not in outdone]
        for record in mine:
            if record.key in outdone:
                apart = (record.run.method, content_hash(hashed_options(record.run.method_config)))
                members.setdefault(apart, []).append(record)
                labels[apart] = _name(record.run, ())
    groups: list[Group] = []
    for place in sorted(members, key=lambda place: (method_rank(place[0]), labels[place], place[1])):
        label = labels[place]
        if list(labels.values()).count(label) > 1:
            label += f" #{place[1][:6]}"
        changed = members[place][0].run.changed
        groups.append(Group(label=label, method=place[0], members=members[place], options=changed))
    return groups


def _identity(run: Run) -> str:
    """Of a row: its configuration, with what was tuned in place of what was chosen."""
    tuned = run.tuning.get("grid", {})
    options = {name: value for name, value in hashed_options(run.method_config).items() if name not in tuned}
    return content_hash([options, sorted(tuned)] if tuned else options)


def _outdone(members: Iterable[Record]) -> set[str]:
    """Keys of a row's runs in whose place a choice from more trials has put others, on the same benchmark."""
    outdone = set()
    for mine in by_benchmark(record for record in members if record.run.tuning).values():
        choices: dict[str, list[Record]] = {}
        for record in mine:
            chosen = [str(record.run.method_config.get(name)) for name in sorted(record.run.tuning.get("grid", {}))]
            choices.setdefault(",".join(chosen), []).append(record)
        most = max(record.run.trial_runs for record in mine)
        for runs in choices.values():
            if max(record.run.trial_runs for record in runs) < most:
                outdone |= {record.key for record in runs}
    return outdone


def is_result(run: Run) -> bool:
    """Whether a table shows the run by itself: not where it was a trial that was not chosen."""
    return not run.tuning or "chosen" in run.tuning


def note_of(records: Sequence[Record]) -> str:
    """What the configuration says of itself (`harness.methods.configs.MethodConfig.label_note`); nothing where the runs of a row do
    not agree or the method is not known here."""
    notes = {label_note(record.run.method, record.run.method_config) for record in records}
    return f" ({note})" if len(notes) == 1 and (note := notes.pop()) else ""


def trials_of(records: Iterable[Record]) -> str:
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


def groups_of_study(study: Study, records: Sequence[Record]) -> list[Group]:
    """A row an entry of the study, whether it has records or not."""
    by_method: dict[str, list[Record]] = {}
    for record in records:
        by_method.setdefault(record.run.method, []).append(record)
    groups = []
    for entry in study.entries:
        found = [record for record in by_method.get(entry.method, []) if is_entry(record, entry.options)]
        if grid := grid_of(entry.method, entry.options, study.tune):
            members = _own_choice(study, grid, [record for record in found if "chosen" in record.run.tuning])
        else:  # what a row names itself is not tuned, even where another study has tuned it
            members = [record for record in found if record.run.changed.keys() <= entry.options.keys()] or found
        scores = entry.scores or study.table.scores
        groups.append(
            Group(label=entry.label, method=entry.method, members=members, scores=scores, options=entry.options)
        )
    return groups


def _own_choice(study: Study, grid: Mapping[str, Sequence[Any]], chosen: Sequence[Record]) -> list[Record]:
    """Without what only other studies chose, where a label tells what this one did.

    A record holds one label, so one of this study may have another's that chose the same from more runs: it is the options
    that decide, and where no label is this study's, all are taken.
    """
    own: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record in chosen:
        on = study.tune_on or (record.run.benchmark,)
        if chosen_from(record.run.tuning, grid=grid, on=on):
            own.setdefault(_chooser(study, record.run), []).append(hashed_options(record.run.method_config))
    return [
        record
        for record in chosen
        if (options := own.get(_chooser(study, record.run))) is None
        or hashed_options(record.run.method_config) in options
    ]


def _chooser(study: Study, run: Run) -> tuple[str, ...]:
    """Of the runs that share one choice."""
    model = (run.protocol_hash, run.backbone, run.checkpoint, str(run.rules.get("decoder", "")))
    return model if study.tune_on else (*model, run.benchmark)


def is_entry(record: Record, options: Mapping[str, Any]) -> bool:
    """Whether a run's configuration is the protocol's with ``options`` and nothing else changed, but for what tuning
    chose; labels may differ."""
    config = {**OPTIONS_ADDED_LATER, **first_names(record.run.method_config)}
    wanted = first_names(options)
    asked = all(name in config and _plain(value) == _plain(config[name]) for name, value in wanted.items())
    if not asked or record.run.changed.keys() <= options.keys():
        return asked
    chosen = record.run.tuning.get("chosen", {})
    return record.run.changed.keys() <= options.keys() | chosen.keys()


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
