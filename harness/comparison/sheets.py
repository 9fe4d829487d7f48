"""Which records share a table, and which of these tables a study has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.archive.schema import ADDED_LATER, Record, Run
from harness.comparison.grid import Grid, Sheet, build_grid, is_run
from harness.comparison.rules import CardOf, from_card, no_card
from harness.studies import Study


def sheets(records: Iterable[Record]) -> dict[Sheet, list[Record]]:
    """Records that may share a table, by (protocol, hash, backbone, checkpoint), in that order."""
    found: dict[Sheet, list[Record]] = {}
    for record in records:
        run = record.run
        found.setdefault((run.protocol, run.protocol_hash, run.backbone, run.checkpoint), []).append(record)
    return {key: sorted(found[key], key=lambda record: record.key) for key in sorted(found)}


def grids(
    records: Iterable[Record],
    *,
    study: Study | None = None,
    metrics: Sequence[str] = (),
    card_of: CardOf = no_card,
) -> list[Grid]:
    """A grid a sheet. With a study: the sheet of its own rules, and others where at least half of its rows were run and that
    keep to what it sets itself; a row that it shares with another study was not run for it under that study's rules. Where
    none is such, what there is.

    Args:
        metrics: see `build_grid`.
        card_of: the harness's own cards, to know the decoder of a study that names none.
    """
    found, rest = [], []
    for sheet, members in sheets(records).items():
        protocol, _, backbone, _ = sheet
        if study is None:
            found.append(build_grid(sheet, members, metrics=metrics))
            continue
        if study.backbones and backbone not in study.backbones:
            continue
        if not _is_model(study, members[0].run, card_of):
            continue
        here = study
        if protocol != study.protocol:  # what another protocol has not run of the study is no gap
            there = {record.run.benchmark for record in members}
            here = replace(study, benchmarks=tuple(name for name in study.benchmarks if name in there))
        grid = build_grid(sheet, members, study=here, metrics=metrics)
        filled = sum(any(is_run(record) for record in mine) for mine in grid.members.values())
        run = members[0].run
        if (2 * filled >= len(grid.rows) and _keeps_to(study, run)) or (filled and _has_rules_of(study, run, card_of)):
            found.append(grid)
        elif filled and protocol == study.protocol:
            rest.append(grid)
    return found or rest


def _keeps_to(study: Study, run: Run) -> bool:
    """Whether a run of the study's own card has what the study sets in it."""
    return run.protocol != study.protocol or not from_card(run.rules, {**run.rules, **study.set})


def _has_rules_of(study: Study, run: Run, card_of: CardOf) -> bool:
    """Whether nothing was set on the command line; yes where the card is not known."""
    if run.protocol != study.protocol:
        return False
    card = card_of(run.protocol, run.benchmark)
    set_by_study = {"budget", "decoder", "decoder_lr"}
    return card is None or from_card(run.rules, {**card, **study.set}).keys() <= set_by_study


def _is_model(study: Study, run: Run, card_of: CardOf) -> bool:
    """Whether a run's decoder is one of the study's, with its rate; what the study leaves to a card that is not known may be any."""
    rules = {**ADDED_LATER, **run.rules}
    card = card_of(run.protocol, run.benchmark)
    wanted = {**(rules if card is None else {**ADDED_LATER, **card}), **study.set}
    if not study.decoders:
        return bool(rules["decoder"] == wanted["decoder"])
    if rules["decoder"] not in study.decoders:
        return False
    return bool(rules["decoder_lr"] == {**wanted, **study.decoders[rules["decoder"]]}["decoder_lr"])
