"""What published numbers were made with, as far as it is known: the condition for a verdict beside one of them.

``results/paper/setups.yaml``: paper -> card, backbone, checkpoint and test images. A run under another card, on another
backbone, from other weights or on other images is no attempt to reproduce the number, and gets no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.archive.cost import CostRecord
from harness.archive.schema import Record
from harness.comparison.rules import CardOf, flat, from_card, in_words
from harness.system.errors import UsageError

FILE = Path(__file__).parents[2] / "results" / "paper" / "setups.yaml"
PUBLISHED_SPLITS = ("official", "AutoGluon's", "PraNet's")
"""How a split rule begins (`harness.datasets.base.Splits.rule`) whose test images are published."""
MOST_NAMED = 4
"""Differences that a cell names before it counts the rest."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What one paper's numbers were made with.

    Args:
        card: the harness's card that holds its rules.
        backbone: name in the catalogue.
        checkpoint: as in `Run.checkpoint`.
        test_images: benchmark -> images in its test splits; one that is not named has no known test split.
    """

    card: str
    backbone: str
    checkpoint: str
    test_images: dict[str, int] = field(default_factory=dict)


def read_setups(path: Path = FILE) -> dict[str, Setup]:
    """Raises UsageError with what is wrong with the file."""
    from harness.system.yaml_files import read_yaml
    from harness.validation import from_mapping  # imports pydantic, which `--help` need not wait for

    data = read_yaml(path, what="published set-ups")
    if not isinstance(data, Mapping):
        raise UsageError(f"{path}: expected a mapping of papers to what their numbers were made with")
    return {str(paper): from_mapping(Setup, values, where=f"{path}, {paper}") for paper, values in data.items()}


def departures(record: Record, setup: Setup, card_of: CardOf) -> list[str]:
    """How a run differs from the published set-up, in words; empty where it does not."""
    run = record.run
    found = []
    if run.backbone != setup.backbone:
        found.append(f"backbone {run.backbone} instead of {setup.backbone}")
    if run.checkpoint != setup.checkpoint:
        found.append("other weights" if run.checkpoint else "random weights")
    found += _data(record, setup)
    card = card_of(setup.card, run.benchmark)
    if card is None:
        return [*found, f"the card {setup.card} is not known"]
    rules = in_words(from_card(run.rules, card))
    return [*found, *rules.split(", ")] if rules else found


def _data(record: Record, setup: Setup) -> list[str]:
    run, published = record.run, setup.test_images.get(record.run.benchmark)
    if run.data_note:
        return [run.data_note]
    if published is None:
        return ["no published test split"]
    if not run.split_rule.startswith(PUBLISHED_SPLITS):
        return [f"test images by another rule ({run.split_rule})"]
    ours = sum(count for split, count in record.counts.items() if split not in ("train", "val"))
    return [f"{ours} test images instead of {published}"] if ours and ours != published else []


def departures_from(
    paper: str, records: Iterable[Record], setups: Mapping[str, Setup], card_of: CardOf
) -> tuple[str, ...]:
    """How these runs differ from what a paper's numbers were made with; all of it, each once."""
    setup = setups.get(paper)
    if setup is None:
        return (f"what {paper} used is not known here",)
    return tuple(dict.fromkeys(one for record in records for one in departures(record, setup, card_of)))


def departures_of_session(session: CostRecord, setup: Setup, card_of: CardOf) -> list[str]:
    """The same for a cost session: device, backbone, and what of the card a step's cost depends on."""
    shown, found = session.comparability, []
    if not shown.on_gpu:
        found.append(f"on a CPU ({shown.device})")
    if session.shared:
        found.append("device shared")
    if shown.backbone != setup.backbone:
        found.append(f"backbone {shown.backbone} instead of {setup.backbone}")
    card = card_of(setup.card, "")
    if card is None:
        return [*found, f"the card {setup.card} is not known"]
    rules = flat(card)
    ours = {"image_size": shown.image_size, "batch_size": shown.batch, "precision": shown.precision, **shown.options}
    changed = {name: (value, rules[name]) for name, value in ours.items() if name in rules and value != rules[name]}
    words = in_words(changed)
    return [*found, *words.split(", ")] if words else found


def shortly(departures: Iterable[str]) -> str:
    """For a cell: the first few, and how many more there are."""
    every = list(dict.fromkeys(departures))
    more = f" and {len(every) - MOST_NAMED} more" if len(every) > MOST_NAMED else ""
    return "; ".join(every[:MOST_NAMED]) + more
