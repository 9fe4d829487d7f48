"""``sam-peft data check``: rules on pairing, counts, masks and copies, each with a verdict."""

from __future__ import annotations

import itertools
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from harness.datasets.base import BINARY, IGNORE, Benchmark, DatasetError, Pair, Splits
from harness.datasets.preparing.fingerprints import Fingerprint, exact_groups, fingerprint_pair, near_pairs
from harness.datasets.readers.decoding import colours_of, listed, mixed_encodings, object_values
from harness.datasets.readers.folder_benchmark import CARVED, FolderBenchmark
from harness.datasets.readers.pairing import name_key

if TYPE_CHECKING:
    from harness.datasets.preparing.unpacking import Progress

Status = Literal["passed", "warned", "failed", "skipped"]

_FILES_LISTED = 20
FEWEST_TESTS = 5
_MOST_CLASSES = 64
"""Stored values from here on are levels of grey rather than classes."""
_FOLDERS_NAMED = 6
_MOST_NUMBERED = 20
"""Average number of images of one photograph beyond which numbers at the end of names are taken for plain counting."""
_EXPECTED = re.compile(r"\.|classes\.txt|dataset\.json|(readme|licen[cs]e|citation)\b", re.IGNORECASE)
"""Files that need no mention if they are not read."""
_GLANCES = 24
"""Number of masks of a split that are looked at before a run."""
INVERTED = (
    "; inverted? The object must be white (above 127), 1, or any colour of a palette except black. For data of your own, "
    "--set benchmarks.NAME.invert=true inverts them (data check: --invert true), and false confirms that they are right"
)


class RuleResult(NamedTuple):
    """The outcome of one rule: ``failed`` makes the check fail, ``warned`` needs a look, ``skipped`` was not checked. ``files``:
    those concerned, at most twenty."""

    rule: str
    status: Status
    message: str
    files: tuple[str, ...] = ()


class Check(NamedTuple):
    """All verdicts on one benchmark's folder."""

    benchmark: str
    root: Path
    splits: Splits | None
    verdicts: tuple[RuleResult, ...]

    @property
    def passed(self) -> bool:
        return all(verdict.status != "failed" for verdict in self.verdicts)


def check(benchmark: Benchmark, root: Path, *, progress: Progress) -> Check:
    """Read everything below ``root`` (as `Benchmark.locate` returned it) and judge it.

    Args:
        progress: called for every image.
    """
    try:
        splits = benchmark.splits(root)
    except DatasetError as error:
        verdict = RuleResult("pairing", "failed", str(error))
        return Check(benchmark=benchmark.name, root=root, splits=None, verdicts=(verdict,))
    entries = [(split, pair) for split, pairs in splits.parts.items() for pair in pairs]
    prints: list[Fingerprint] = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(cores)
    try:
        for fingerprint in pool.map(lambda entry: fingerprint_pair(benchmark, *entry), entries):
            prints.append(fingerprint)
            progress("reading", len(prints), len(entries))
    finally:
        pool.shutdown(cancel_futures=True)
    whole = [fingerprint for fingerprint in prints if not fingerprint.error]
    masks = _masks(benchmark, whole, root) if benchmark.task != "classification" else [_labels(benchmark, splits)]
    verdicts = (
        _pairing(splits, root),
        _counts(benchmark, splits),
        enough_tests(splits),
        *([_left_lying(splits, root)] if benchmark.own else []),
        _groups(benchmark, splits, root),
        _readable(prints, root),
        *masks,
        *_copies("exact", exact_groups(whole), benchmark, root),
        *_copies("near", near_pairs(whole), benchmark, root),
    )
    return Check(benchmark=benchmark.name, root=root, splits=splits, verdicts=verdicts)


def _label(path: Path, root: Path) -> str:
    """A file for messages: relative where it is below ``root``."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _files(fingerprints: Sequence[Fingerprint], root: Path) -> tuple[str, ...]:
    return tuple(_label(fingerprint.pair.image, root) for fingerprint in fingerprints[:_FILES_LISTED])


def _pairing(splits: Splits, root: Path) -> RuleResult:
    pairs = [pair for part in splits.parts.values() for pair in part]
    folders = dict.fromkeys((p.image.parent, p.mask if p.entry and p.mask.is_file() else p.mask.parent) for p in pairs)
    read = [
        f"{_label(images, root)}/ with {_label(masks, root)}" if images != masks else _label(images, root)
        for images, masks in folders
    ]
    more = [f"{len(read) - _FOLDERS_NAMED} more"] if len(read) > _FOLDERS_NAMED else []
    read = [*read[:_FOLDERS_NAMED], *more, *splits.lists.values()]
    message = f"layout {splits.layout}, {len(pairs)} pairs; {splits.rule}; read: {', '.join(read)}"
    files = tuple(_label(path, root) for path in splits.left_out[:_FILES_LISTED])
    return RuleResult("pairing", "warned" if files else "passed", message, files)


def _left_lying(splits: Splits, root: Path) -> RuleResult:
    """Files and folders below ``root`` that nothing is read from, such as a second folder of masks or another list."""
    files = {path for pairs in splits.parts.values() for pair in pairs for path in (pair.image, pair.mask)}
    holding = {parent for path in (*files, *splits.lists) for parent in path.parents}
    below = {root, *(folder for folder in holding - {path.parent for path in files} if folder.is_relative_to(root))}
    unread = [
        path
        for folder in sorted(below)
        for path in sorted(folder.iterdir())
        if path not in holding | files | splits.lists.keys() and not _EXPECTED.match(path.name)
    ]
    lying = tuple(f"{_label(path, root)}{'/' * path.is_dir()}" for path in unread)
    message = f"{len(lying)}: {', '.join(lying[:_FILES_LISTED])}" if lying else "nothing"
    folders = any(name.endswith("/") for name in lying)
    return RuleResult("not read", "warned" if folders else "passed", message, lying[:_FILES_LISTED])


def _counts(benchmark: Benchmark, splits: Splits) -> RuleResult:
    """Published sizes by split; where a benchmark publishes no validation split, train and val count together."""
    note = f" ({splits.note})" if splits.note else ""
    if splits.generated:
        return RuleResult("counts", "warned", "a generated sample, not the published benchmark")
    further = getattr(benchmark, "further_tests", ())
    tests = sum(len(pairs) for split, pairs in splits.test.items() if split not in further)
    counts = {"train": len(splits.train), "val": len(splits.val), "test": tests}
    if not (published := dict(benchmark.sizes_to_expect(splits.layout))):
        return RuleResult("counts", "warned", f"not compared: no sizes were published{note}")
    if "all" in published or splits.layout == "autogluon" or benchmark.options.split_rule == CARVED:
        published, counts = {"all": sum(published.values())}, {"all": sum(counts.values())}
    elif "val" not in published:
        counts["train"] += counts.pop("val")
    wrong = ", ".join(f"{s} {counts[s]:,} of {size:,}" for s, size in published.items() if counts[s] != size)
    if wrong and all(counts[split] <= size for split, size in published.items()):
        return RuleResult("counts", "warned", f"a part of the benchmark, which tables say{note}: {wrong}")
    if wrong:
        return RuleResult("counts", "failed", f"not the published sizes: {wrong}")
    listed = ", ".join(f"{split} {count}" for split, count in counts.items())
    return RuleResult("counts", "warned" if note else "passed", f"all that this split rule takes: {listed}{note}")


def enough_tests(splits: Splits) -> RuleResult:
    count = min(map(len, splits.test.values()))
    few = count < FEWEST_TESTS
    words = f"{count}: too few for a reliable score; give more" if few else f"{count}"
    return RuleResult("test images", "warned" if few else "passed", words)


def _groups(benchmark: Benchmark, splits: Splits, root: Path) -> RuleResult:
    """Images of one group (a video, an original image, a patient) in two splits. Given splits are kept, so only the user can correct
    them."""
    rule = "groups across splits"
    if not _has_groups(benchmark):
        alike = names_alike(splits)
        return RuleResult(rule, "warned" if alike else "skipped", f"not checked: no rule{alike and f'; {alike}'}")
    groups: dict[str, list[tuple[str, Pair]]] = {}
    for split, pairs in splits.parts.items():
        for pair in pairs:
            groups.setdefault(benchmark.group(pair), []).append((split, pair))
    across = {name: members for name, members in groups.items() if len({split for split, _ in members}) > 1}
    if not across:
        return RuleResult(rule, "passed", f"{len(groups)} groups, each in one split")
    examples = tuple(
        f"{name}: "
        + ", ".join(f"{split} {_label(pair.image, root)}" for split, pair in dict(reversed(members)).items())
        for name, members in itertools.islice(across.items(), _FILES_LISTED)
    )
    tested = sum(split in splits.test for members in across.values() for split, _ in members)
    message = (
        f"{len(across)} of {len(groups)} groups have images in several splits, {tested} test images among them; "
        f"{'move each to one side' if benchmark.own else 'training shares their groups'}; the first: {examples[0]}"
    )
    return RuleResult(rule, "failed" if benchmark.own else "warned", message, examples)


def _has_groups(benchmark: Benchmark) -> bool:
    """Whether a rule says which images stay together."""
    if benchmark.own:
        return bool(benchmark.options.group)
    return type(benchmark).group not in (Benchmark.group, FolderBenchmark.group)


def groups_apart(benchmark: Benchmark, splits: Splits, root: Path) -> tuple[str, ...]:
    """A line where splits separate what belongs together; `run` prints it. Raises DatasetError: they are the user's own."""
    found = _groups(benchmark, splits, root) if _has_groups(benchmark) else None
    line = f"{benchmark.name}: {found.rule}: {found.message}" if found and found.status != "passed" else ""
    if line and benchmark.own:
        raise DatasetError(line)
    return (line,) if line else ()


_PIECES = (r"(?:r|row|x|y)\d+[_-]?(?:c|col|x|y)\d+", r"scaled[_-]?\d+", r"(?<!\d)\d{1,3}")
"""What follows the name of a photograph in the names of its tiles, its scaled copies, and its numbered copies."""


def names_alike(splits: Splits) -> str:
    """A line where names of test images and of training or validation images differ only in a tile, a scale or a short number at the
    end; else empty. Numbers count where they follow several beginnings, of few images each: most data are simply numbered."""
    stems = {
        split: [name_key(pair.stem.removeprefix(pair.prefix)) for pair in pairs]
        for split, pairs in splits.parts.items()
    }
    for piece in _PIECES:
        name = re.compile(rf"(.*[^\W_].*?)[ _-]*{piece}")
        begins = {stem: match[1] for named in stems.values() for stem in named if (match := name.fullmatch(stem))}
        if piece == _PIECES[-1] and len(set(begins.values())) < max(2, len(begins) / _MOST_NUMBERED):
            continue
        known = {begins.get(stem, stem): stem for stem in (*stems["train"], *stems["val"])}
        tested = [stem for split in splits.test for stem in stems[split]]
        if alike := [stem for stem in tested if begins.get(stem) in known]:
            return (
                f"{len(alike)} of {len(tested)} test images are named like training or validation images ({alike[0]}, "
                f"{known[begins[alike[0]]]}): if these show the same thing, keep them on one side with a group rule, such as "
                f"(.+?)([ _-]*{piece})?$ (data check: --group; run: --set benchmarks.NAME.group=)"
            )
    return ""


def _readable(prints: Sequence[Fingerprint], root: Path) -> RuleResult:
    broken = [fingerprint for fingerprint in prints if fingerprint.error]
    if not broken:
        return RuleResult("readable", "passed", f"all {len(prints)} pairs decode")
    words = f"{len(broken)} pairs cannot be read; the first: {broken[0].error}"
    return RuleResult("readable", "failed", words, _files(broken, root))


def _labels(benchmark: Benchmark, splits: Splits) -> RuleResult:
    """Classes without an image in a split: in training they cannot be learnt, in a test they are not in the score."""
    counts = {split: Counter(benchmark.class_names[pair.label or 0] for pair in p) for split, p in splits.parts.items()}
    lines = tuple(
        f"{name}: " + ", ".join(f"{split} {counts[split][name]}" for split in counts) for name in benchmark.class_names
    )
    absent = {split: [name for name in benchmark.class_names if not counts[split][name]] for split in counts}
    missing = "; ".join(f"{split} has no image of {', '.join(names)}" for split, names in absent.items() if names)
    status: Status = "failed" if absent["train"] else "warned" if missing else "passed"
    return RuleResult("labels", status, missing or "; ".join(lines), lines if missing else ())


def _masks(benchmark: Benchmark, prints: Sequence[Fingerprint], root: Path) -> list[RuleResult]:
    if not prints:
        return [RuleResult("mask values", "failed", "no mask can be read; see above for the first")]
    return [
        _values(benchmark, prints),
        mask_polarity(benchmark, prints) if benchmark.task == "binary" else _classes(benchmark, prints),
        one_class_masks(prints, root),
        image_and_mask_size(prints, root),
        *_turns(prints, root),
    ]


def _values(benchmark: Benchmark, prints: Sequence[Fingerprint]) -> RuleResult:
    stored = listed([value for fingerprint in prints for value in fingerprint.values])
    message = f"stored: {stored}; all decode to classes 0 to {benchmark.num_classes - 1}"
    if not benchmark.own:
        return RuleResult("mask values", "passed", message)
    held = [frozenset(fingerprint.values) - {0} for fingerprint in prints]
    if wrong := _mixed(benchmark, held):
        return RuleResult("mask values", "failed", f"{message}; {wrong}")
    if benchmark.task != "binary":
        return RuleResult("mask values", "passed", message)
    if not any(mask.shares[1] for mask in prints) and any(IGNORE in values for values in held):
        odd = "every object is 255, ignored where classes are named: write 1 for the object, or remove the names"
        return RuleResult("mask values", "failed", f"{message}; {odd}")
    objects = {max(values) for values in held if len(values) == 1}
    if len(objects) > 1 and max(objects) < _MOST_CLASSES:
        odd = f"each mask holds one of {listed(sorted(objects))}: several classes? name them in classes.txt"
        return RuleResult("mask values", "warned", f"{message}; {odd}")
    return RuleResult("mask values", "passed", message)


def _mixed(benchmark: Benchmark, held: Sequence[frozenset[int]]) -> str:
    """What is wrong where 255 is the object of some masks and to be ignored in others. Without names of classes, masks of 0 and 1 may be
    mixed with those of 0 and 255, since each file shows what its object is."""
    named = benchmark.class_names != BINARY
    if colours_of(benchmark.class_names):
        return ""
    of_255 = held if named else [values for values in held if IGNORE in values]
    return mixed_encodings(of_255, num_classes=benchmark.num_classes, named=named)


def mask_polarity(benchmark: Benchmark, prints: Sequence[Fingerprint]) -> RuleResult:
    """Whether masks are inverted: those nearly always fill most of a picture and most of its border, objects seldom do. Where the user
    has said whether they are (`DataOptions.invert`), nothing is judged."""
    share = statistics.median(fingerprint.shares[1] for fingerprint in prints)
    border = statistics.median(fingerprint.border_share for fingerprint in prints)
    coverage = f"foreground covers {share:.0%} of the median mask and {border:.0%} of its border"
    unknown = benchmark.options.invert is None
    status: Status = "failed" if share > 0.5 and border > 0.5 and unknown else "passed"
    return RuleResult("mask polarity", status, coverage + (INVERTED if status == "failed" else ""))


def _classes(benchmark: Benchmark, prints: Sequence[Fingerprint]) -> RuleResult:
    seen = {index for fingerprint in prints for index, share in enumerate(fingerprint.shares) if share > 0}
    absent = [benchmark.class_names[index] for index in range(benchmark.num_classes) if index not in seen]
    if absent:
        return RuleResult("classes", "failed", f"never in a mask: {', '.join(absent)}")
    return RuleResult("classes", "passed", f"all {benchmark.num_classes} classes occur")


def one_class_masks(prints: Sequence[Fingerprint], root: Path) -> RuleResult:
    """Some data have masks without an object (most tiles have no defect); where no mask has one, nothing can be learnt."""
    single = [fingerprint for fingerprint in prints if max(fingerprint.shares, default=0.0) >= 1.0]
    message = f"{len(single)} of {len(prints)} masks hold one class only"
    if 2 * len(single) <= len(prints):
        return RuleResult("one-class masks", "passed", message)
    message += "; a score counts an empty mask as right where nothing is found in it"
    status: Status = "failed" if len(single) == len(prints) else "warned"
    return RuleResult("one-class masks", status, message, _files(single, root))


def image_and_mask_size(prints: Sequence[Fingerprint], root: Path) -> RuleResult:
    wrong = [mask for mask in prints if mask.image_size != mask.mask_size]
    if not wrong:
        return RuleResult("image and mask size", "passed", "equal in every pair")
    (width, height), of_mask = wrong[0].image_size, wrong[0].mask_size
    first = f"{wrong[0].pair.stem}, image {width}x{height}, mask {of_mask[0]}x{of_mask[1]}"
    words = (
        f"{len(wrong)} masks have another size than their image; the first: {first}; images are scaled to their masks"
    )
    return RuleResult("image and mask size", "warned", words, _files(wrong, root))


def _turns(prints: Sequence[Fingerprint], root: Path) -> list[RuleResult]:
    """Images that EXIF turns, where sizes do not say whether masks were drawn on the turned image."""
    if not (unsure := [fingerprint for fingerprint in prints if fingerprint.turn_is_open]):
        return []
    words = (
        f"{len(unsure)} images are turned or mirrored by EXIF, and their masks fit either way; masks are taken as drawn on the image as "
        f"viewers show it; look at {_label(unsure[0].pair.image, root)} with its mask"
    )
    return [RuleResult("EXIF orientation", "warned", words, _files(unsure, root))]


def _copies(
    kind: str, groups: Sequence[Sequence[Fingerprint]], benchmark: Benchmark, root: Path
) -> Iterator[RuleResult]:
    """Copies within a split give a warning. Copies across splits fail, unless they are of one group, which `_groups` judges."""
    for where, several in (("within a split", False), ("across splits", True)):
        chosen = [group for group in groups if (len({fingerprint.split for fingerprint in group}) > 1) is several]
        grouped = all(len({benchmark.group(each.pair) for each in group}) == 1 for group in chosen)
        bad: Status = "failed" if several and not grouped else "warned"
        lines = tuple(
            " = ".join(f"{each.split}: {_label(each.pair.image, root)}" for each in group) for group in chosen
        )
        message = f"{len(lines)} groups; the first: {lines[0]}" if lines else "none"
        status: Status = bad if lines else "passed"
        yield RuleResult(f"{kind} copies {where}", status, message, lines[:_FILES_LISTED])


def first_look(benchmark: FolderBenchmark, splits: Splits, root: Path) -> tuple[str, ...]:
    """What looks wrong in a sample of a user's own masks, a line each; `run` prints it before it trains on them.

    Raises:
        DatasetError: a rule of `check` fails, or a training or test split has no object at all.
    """
    looked: list[Fingerprint] = []
    found = [_mixed_masks(benchmark, splits), _groups(benchmark, splits, root)]
    for split, pairs in {"train": splits.train, **splits.test}.items():
        of_split = pairs[:: max(1, len(pairs) // _GLANCES)][:_GLANCES]
        prints = [fingerprint_pair(benchmark, split, pair) for pair in of_split]
        found.append(_readable(prints, root))
        # Few masks of a split may hold an object, so all are read before the split is said to have none.
        if not any(any(each.shares[1:]) or each.error for each in prints) and not any(
            (mask % IGNORE).any() for mask in map(benchmark.mask_of, pairs)
        ):
            words = f"every mask of the {split} split is background; give masks of what is looked for"
            found.append(RuleResult("objects", "failed", words))
        looked += [each for each in prints if not each.error]
    found += [enough_tests(splits), *(each for each in _masks(benchmark, looked, root) if each.rule != "classes")]
    if failed := [each for each in found if each.status == "failed"]:
        whole = f"sam-peft data check {benchmark.name}={root} looks at all of them"
        raise DatasetError(f"{benchmark.name}: {failed[0].rule}: {failed[0].message} ({whole})")
    return tuple(f"{benchmark.name}: {each.rule}: {each.message}" for each in found if each.status == "warned")


def _mixed_masks(benchmark: FolderBenchmark, splits: Splits) -> RuleResult:
    """See `_mixed`; all masks are read, since few may be of the other kind."""
    masks = {pair.mask for pairs in splits.parts.values() for pair in pairs if not pair.entry}
    look = partial(object_values, num_classes=benchmark.num_classes)
    with ThreadPoolExecutor() as pool:
        mixed = "" if benchmark.class_names == BINARY else _mixed(benchmark, [*pool.map(look, sorted(masks))])
    return RuleResult("mask values", "failed" if mixed else "passed", mixed)
