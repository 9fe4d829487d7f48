"""What records of earlier schemas leave out or say differently, filled in when they are read. The values that newer rules and options
had for them are in `harness.protocols.keys`.

Schema 2 says in words where the data came from and how they were split. A row's label and the scored model of scores by image were
called ``variant``. The first records of schema 3 lack ``label_note``, ``never_reached`` and ``operations``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

from pydantic import AliasChoices, Field

from harness.archive.schema import CONTENT, SCHEMA_VERSION, Origin, Record, Run, TestImages, counted_updates
from harness.methods import default_options
from harness.methods.parts.placement import MethodError
from harness.protocols.keys import FIRST_OPTIONS, first_names, gone_options

_VARIANT = "variant"
RowLabel = Annotated[str, Field(validation_alias=AliasChoices("label", _VARIANT))]
"""The label of a row in a file."""
_GENERATED = "generated sample"
"""How the note on generated data begins."""
_PUBLISHED = ("official", "AutoGluon's", "PraNet's")
"""How the rule of a split with published test images begins."""
_IGNORED = " ignored"
"""Follows a split's name in the counts, for its images whose every pixel is ignored."""
_CONTROL = "a control without a search: it would begin after"


def with_label(run: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Run` in a file, whose label may have its old name."""
    return {"label" if name == _VARIANT else name: value for name, value in run.items()}


def with_model(header: list[str]) -> list[str]:
    """The columns of scores by image, whose first may have its old name."""
    return ["model", *header[1:]] if header[:1] == [_VARIANT] else header


def filled(record: Record) -> Record:
    """The record as the present schema has it."""
    if record.run.operations is None:
        record = replace(record, run=replace(record.run, **_of_method(record.run)))
    if record.schema_version >= SCHEMA_VERSION:
        return record
    run = record.run
    ignored = {name.removesuffix(_IGNORED): count for name, count in record.counts.items() if name.endswith(_IGNORED)}
    return replace(
        record,
        run=replace(run, origin=_origin(run), split=_split(run.split_rule)),
        counts={name: count for name, count in record.counts.items() if not name.endswith(_IGNORED)},
        ignored=ignored,
        budget=record.budget or counted_updates(record.history),
    )


def _origin(run: Run) -> Origin:
    if run.data_note == f"{_GENERATED}s":
        return "generated"
    return "generated-files" if run.data_note.startswith(_GENERATED) else "files"


def _split(rule: str) -> TestImages:
    if rule.startswith(_PUBLISHED):
        return "published"
    return "carved" if rule.startswith("carved") or "test carved" in rule else "given"


def _of_method(run: Run) -> dict[str, Any]:
    """The fields that the method of a built-in run would fill in today."""
    from harness.methods.parts.operations import parse_operations

    options, epochs = {**default_options(run.method), **run.method_config}, int(run.rule("epochs") or 0)
    operations = list[str]()
    with suppress(KeyError, MethodError):
        operations = list(parse_operations(options["operations"], style=options["style"]))
    start = options.get("search_start_epoch") if len(operations) > 1 and options.get("stagewise") else 0
    never = isinstance(start, int) and 0 < epochs <= start
    return {
        "label_note": "Switch gate" if options.get("gate") in ("switch", "intended") else "",
        "never_reached": f"{_CONTROL} T_B = {start} of {epochs} epochs" if never else "",
        "operations": operations,
    }


def with_plans(records: Sequence[Record]) -> list[Record]:
    """The records with what their sweeps planned. The oldest lack it: their plan is taken to be one row on one benchmark, with all the
    seeds that such records have there under the same rules."""
    seeds: dict[tuple[str, ...], set[int]] = {}
    for run in (record.run for record in records if not record.run.planned_seeds):
        seeds.setdefault(_same_sweep(run), set()).add(run.seed)

    def planned(run: Run) -> Run:
        return replace(run, planned_seeds=sorted(seeds[_same_sweep(run)]), planned_benchmarks=[run.benchmark])

    return [each if each.run.planned_seeds else replace(each, run=planned(each.run)) for each in records]


def _same_sweep(run: Run) -> tuple[str, ...]:
    return run.protocol_hash, run.backbone, run.checkpoint, run.benchmark


def groups_of(benchmark: str, stems: Sequence[str]) -> dict[str, str]:
    """stem -> group, for scores by image whose file names no groups. The first records of CVC-612 left its sequences out."""
    if benchmark == "cvc612":
        from harness.datasets.base import DatasetError
        from harness.datasets.cvc612 import sequence_of

        with suppress(DatasetError):  # stems that are not frames
            return {stem: f"sequence {sequence_of(stem):02d}" for stem in stems}
    return {}


def same_data(first: str, second: str) -> bool:
    """Whether two fingerprints may belong to the same files: by contents, or by sizes where one is older. An empty one fits any."""
    if not first or not second:
        return True
    if first.startswith(CONTENT) and second.startswith(CONTENT):
        return first.split("-")[1] == second.split("-")[1]
    return first.rpartition("-")[2] == second.rpartition("-")[2]


def fullest_fingerprints(runs: Sequence[Run]) -> list[str]:
    """A fingerprint of each run's files that is equal where they are: an older one, or none, counts as the fullest that fits it."""
    there: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        there.setdefault((run.benchmark, run.manifest), set()).add(run.data_fingerprint)
    fullest = {data: sorted(prints, key=lambda each: (-len(each), each)) for data, prints in there.items()}
    return [
        next(mark for mark in fullest[run.benchmark, run.manifest] if same_data(mark, run.data_fingerprint))
        for run in runs
    ]


def options_with_later(method: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A record's method configuration with the options that came later or are gone, at the values that they had."""
    first = FIRST_OPTIONS.get(method, ())
    later = {name: value for name, value in default_options(method).items() if name not in first}
    return {**gone_options(method), **later, **first_names(config)}
