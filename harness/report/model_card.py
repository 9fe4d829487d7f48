"""The model card of an export: README.md for the Hugging Face Hub, metadata in YAML first, then facts, use, scores and terms.

Scores stand in the text alone. The Hub's files of evaluation results name a benchmark that is a data set on the Hub, which these are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import __version__
from harness.archive.schema import Record, Run
from harness.comparison.names import SCORE_TITLES, benchmark_title, heading, shown_metrics
from harness.report.runs import command_of

DEMO = "**A demonstration**: trained and scored on generated images. Its scores say nothing about real ones."


def model_card(
    record: Record, *, base: str | None, licence: str | None, form: str, usage: str, merge: str, terms: str, source: str,
    typed: str = "",
) -> str:  # fmt: skip
    """Text of the card.

    Args:
        record: of the exported run.
        base: name on the Hub of the model that it started from.
        licence: the Hub's name of the licence of that model's published weights; None where it is not known.
        form: the kind of file, in words.
        usage: Python that loads the file.
        merge: merge mode of the file, empty where the method is not merged.
        terms, source: of the benchmark's images.
        typed: the command that trained it, as it was typed; empty where it is not known.
    """
    run, title = record.run, benchmark_title(record.run.benchmark, [record.run])
    scored = f"merged-{merge}" if f"merged-{merge}" in record.scores else "best"
    unscored = merge if scored == "best" and merge != "exact" else ""  # an exact merge does not change outputs
    tests = {name: scores for name, scores in record.scores.get(scored, {}).items() if name != "val"}
    names = {name for scores in tests.values() for name in scores}
    shown = shown_metrics(run.benchmark, [run], scored=names)
    name_of_model = f"{run.label} on {title}" + (" (generated images)" if run.is_generated else "")
    metadata = {
        "base_model": base,
        "license": licence or (None if run.checkpoint else "apache-2.0"),
        "metrics": [name for name in shown if name in names] or None,
        "model_name": name_of_model,
    }
    state = "last checkpoint" if run.rule("select") == "last" else "best checkpoint on validation"
    data = "The images are generated." if run.is_generated else f"The data: {terms}. {source * (terms != 'your own')}"
    unknown = "The licence is that of the weights which the run started from. " if run.checkpoint else ""
    lines = [
        f"---\n{_metadata(run, metadata)}\n---",
        f"# {name_of_model}",
        f"{form[0].upper()}{form[1:]}, written by sam-peft-harness {__version__}.",
        *([DEMO] if run.is_generated else []),
        _facts(record, title, base or run.backbone),
        "## Use\n" + _input(run, several="miou" in names) + "\n```python\n" + usage + "\n```",
        "## Scores\n" + _scores(tests, shown, scored, unscored=unscored, state=state),
        "## The command that trains it\n```\n" + command_of([record]) + "\n```",
        *([f"It was typed as\n```\n{typed}\n```"] if typed else []),
        "## Terms\n" + (f"The published weights are under {licence}. " if licence else unknown) + data,
    ]
    return "\n\n".join(lines) + "\n"


def _metadata(run: Run, more: Mapping[str, Any]) -> str:
    """The YAML that the Hub reads."""
    from huggingface_hub import ModelCardData

    task = "image-classification" if run.rule("task") == "classification" else "image-segmentation"
    tags = ["sam-peft-harness", run.method, run.backbone.replace("/", "-")]
    return str(ModelCardData(**more, datasets=[run.benchmark], pipeline_tag=task, tags=tags).to_yaml())


def _facts(record: Record, title: str, base: str) -> str:
    run, trained = record.run, record.parameters.get("trainable")
    start = f"weights `{run.checkpoint}`" if run.checkpoint else "random weights"
    images = ", ".join(f"{count} {name}" for name, count in {**record.counts, **record.limits}.items())
    facts = {
        "Base model": f"{base}, backbone `{run.backbone}`, from {start}",
        "Method": f"`{run.label}`" + (f", {trained:,} trained parameters" if trained else ""),
        "Data set": f"{title}{', generated' * run.is_generated}; images: {images or 'not recorded'}; split: {run.split_rule}",
        "Protocol": f"`{run.protocol}`, hash `{run.protocol_hash}`, {run.rule('image_size')} px, seed {run.seed}",
        "Record": f"`{record.key}`, made {record.finished or 'at a time that is not recorded'}",
    }
    return "\n".join(f"- **{name}**: {text}" for name, text in facts.items())


def _input(run: Run, *, several: bool) -> str:
    """What the model takes and gives, in words; ``several``: of several classes."""
    image = f"An image is stretched to {run.rule('image_size')} × {run.rule('image_size')} pixels, not padded"
    if run.rule("task") == "classification" or run.rule("decoder") != "sam":
        return f"{image}."
    return f"{image}; " + (
        "the classes are those of its own mask tokens." if several else "the mask is that of the first mask token."
    )


def _scores(
    tests: Mapping[str, Mapping[str, float]], shown: tuple[str, ...], scored: str, *, unscored: str, state: str
) -> str:
    """The table of scores, by the ``state`` of the run unless ``scored`` is another form of its model.

    ``unscored``: the merge mode of a file whose own scores the record lacks, else empty.
    """
    if not any(tests.values()):
        return "The record holds no scores."
    which = SCORE_TITLES[scored] or state
    if unscored:
        which += f", of the model before merging, and merging by {unscored} can change its outputs: they are not this file's scores"
    rows = [
        f"| {split} | {heading(name)} | {scores[name]:.4f} |"
        for split, scores in tests.items()
        for name in shown
        if name in scores
    ]
    return "\n".join([f"Of the record, in [0, 1], {which}.", "", "| split | metric | score |", "|---|---|---:|", *rows])
