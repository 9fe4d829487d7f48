"""What the rules of ``check`` say of a benchmark whose files were read: pairing, counts, masks, copies."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.datasets.base import Benchmark, Pair, Splits
from harness.datasets.preparing.fingerprints import Fingerprint, exact_groups, label, near_pairs
from harness.datasets.reading.folder_benchmark import CARVED, SAMPLE_MARKER, SAMPLE_NOTE
from harness.datasets.reading.labels import counts_by_class

Status = Literal["passed", "warned", "failed"]

_FILES_LISTED = 20
FEWEST_TESTS = 5
_MOST_CLASSES = 64
"""Stored values from here on are levels of grey rather than classes."""
INVERTED = (
    "; inverted? What is looked for must be white (above 127), 1, or any colour of a palette but black: invert the masks, "
    "such as with ImageMagick's mogrify -negate"
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a rule found.

    Args:
        rule: name of the rule.
        status: ``failed`` makes the check fail; ``warned`` is to be looked at.
        message: one line.
        files: the files concerned, at most twenty.
    """

    rule: str
    status: Status
    message: str
    files: tuple[str, ...] = ()


def verdicts_on(benchmark: Benchmark, splits: Splits, prints: Sequence[Fingerprint], root: Path) -> tuple[Verdict, ...]:
    """One verdict a rule.

    Args:
        benchmark: what should be there.
        splits: its pairs by split.
        prints: what reading every one of them found.
        root: its folder.
    """
    whole = [found for found in prints if not found.error]
    return (
        _pairing(splits, len(prints), root),
        _counts(benchmark, splits, root),
        enough_tests(splits),
        _groups(benchmark, splits, root),
        _readable(prints, root),
        *([_labels(benchmark, splits)] if benchmark.task == "classification" else _masks(benchmark, whole, root)),
        _exif(whole, root),
        *_exact(whole, root),
        *_near(whole, root),
    )


def _pairing(splits: Splits, pairs: int, root: Path) -> Verdict:
    message = f"layout {splits.layout}, {pairs} pairs; {splits.rule}"
    files = tuple(label(path, root) for path in splits.left_out[:_FILES_LISTED])
    return Verdict(rule="pairing", status="warned" if files else "passed", message=message, files=files)


def _files(found: Sequence[Fingerprint], root: Path) -> tuple[str, ...]:
    return tuple(label(one.pair.image, root) for one in found[:_FILES_LISTED])


def _counts(benchmark: Benchmark, splits: Splits, root: Path) -> Verdict:
    """Published sizes by split; where a benchmark publishes no validation split, train and val count together."""
    found = {"train": len(splits.train), "val": len(splits.val), "test": sum(map(len, splits.test.values()))}
    published = dict(benchmark.sizes_to_expect(splits.layout))
    if "all" in published or splits.layout == "autogluon" or benchmark.options.split_rule == CARVED:
        published, found = {"all": sum(published.values())}, {"all": sum(found.values())}
    elif "val" not in published and published:
        found["train"] += found.pop("val")
    wrong = [
        f"{split} {found[split]:,} of {published[split]:,}" for split in published if found[split] != published[split]
    ]
    if (root / SAMPLE_MARKER).exists() or splits.note == SAMPLE_NOTE:
        return Verdict(rule="counts", status="warned", message="a generated sample, not the published benchmark")
    if benchmark.options.split_rule in getattr(benchmark, "joint_rules", ()):
        message = "not compared: this split rule adds another benchmark's training images"
        return Verdict(rule="counts", status="warned", message=message)
    if not published:
        message = f"not compared: nobody published sizes of this ({splits.note or splits.layout})"
        return Verdict(rule="counts", status="warned", message=message)
    if wrong and all(found[split] <= published[split] for split in published):
        message = f"a part of the benchmark, which tables say ({splits.note}): {', '.join(wrong)}"
        return Verdict(rule="counts", status="warned", message=message)
    if wrong:
        return Verdict(rule="counts", status="failed", message=f"not the published sizes: {', '.join(wrong)}")
    told = ", ".join(f"{split} {count}" for split, count in found.items())
    note = f" ({splits.note})" if splits.note else ""
    official = benchmark.sizes_to_expect(splits.layout) == benchmark.published_sizes
    whole = "as published" if official else "all that this split rule takes"
    return Verdict(rule="counts", status="warned" if note else "passed", message=f"{whole}: {told}{note}")


def enough_tests(splits: Splits) -> Verdict:
    count = min(map(len, splits.test.values()))
    if count < FEWEST_TESTS:
        message = f"{count}: a score of so few images says little; give more"
        return Verdict(rule="test images", status="warned", message=message)
    return Verdict(rule="test images", status="passed", message=f"{count}")


def _groups(benchmark: Benchmark, splits: Splits, root: Path) -> Verdict:
    """Images of one group (a video, an original image, a patient) in two splits: given splits are kept, so only the user can
    mend them."""
    parts = {"train": splits.train, "val": splits.val, **splits.test}
    groups: dict[str, list[tuple[str, Pair]]] = {}
    for split, pairs in parts.items():
        for pair in pairs:
            groups.setdefault(benchmark.group(pair), []).append((split, pair))
    rule = "groups across splits"
    if all(len(members) == 1 for members in groups.values()):
        return Verdict(rule=rule, status="passed", message="no two images belong together, as far as a rule says")
    across = {name: members for name, members in groups.items() if len({split for split, _ in members}) > 1}
    if not across:
        return Verdict(rule=rule, status="passed", message=f"{len(groups)} groups, each in one split")
    told = tuple(
        f"{name}: " + ", ".join(f"{split} {label(pair.image, root)}" for split, pair in members[:4])
        for name, members in list(across.items())[:_FILES_LISTED]
    )
    message = f"{len(across)} of {len(groups)} groups have images in several splits, so a test knows its images; the first: {told[0]}"
    return Verdict(rule=rule, status="failed" if _is_own(benchmark) else "warned", message=message, files=told)


def _is_own(benchmark: Benchmark) -> bool:
    return getattr(benchmark, "whose_splits", "") == "given"


def _readable(prints: Sequence[Fingerprint], root: Path) -> Verdict:
    broken = [found for found in prints if found.error]
    if not broken:
        return Verdict(rule="readable", status="passed", message=f"all {len(prints)} pairs decode")
    message = f"{len(broken)} pairs cannot be read; the first: {broken[0].error}"
    return Verdict(rule="readable", status="failed", message=message, files=_files(broken, root))


def _labels(benchmark: Benchmark, splits: Splits) -> Verdict:
    """A class that training or a test has no image of: the first cannot be learnt, the second is not in the score."""
    parts = {"train": splits.train, "val": splits.val, **splits.test}
    counts = {split: counts_by_class(pairs, benchmark.class_names) for split, pairs in parts.items()}
    lines = tuple(
        f"{name}: " + ", ".join(f"{split} {counts[split][name]}" for split in parts) for name in benchmark.class_names
    )
    absent = {split: [name for name, count in mine.items() if not count] for split, mine in counts.items()}
    told = "; ".join(f"{split} has no image of {', '.join(names)}" for split, names in absent.items() if names)
    if told:
        return Verdict(rule="labels", status="failed" if absent["train"] else "warned", message=told, files=lines)
    return Verdict(rule="labels", status="passed", message="; ".join(lines))


def _masks(benchmark: Benchmark, prints: Sequence[Fingerprint], root: Path) -> list[Verdict]:
    if not prints:
        return [Verdict(rule="mask values", status="failed", message="no mask can be read; see above for the first")]
    return [
        _values(benchmark, prints),
        mask_polarity(prints) if benchmark.task == "binary" else _classes(benchmark, prints),
        one_class_masks(prints, root),
        image_and_mask_size(benchmark, prints, root),
    ]


def _values(benchmark: Benchmark, prints: Sequence[Fingerprint]) -> Verdict:
    told = _ranges(sorted({value for found in prints for value in found.values}))
    message = f"stored: {told}; all decode to classes 0 to {benchmark.num_classes - 1}"
    objects = {found.values[-1] for found in prints if 1 <= len(found.values) <= 2} - {0}
    if _is_own(benchmark) and benchmark.task == "binary" and len(objects) > 1 and max(objects) < _MOST_CLASSES:
        message += f"; each mask holds one of {_ranges(sorted(objects))}: several classes? name them in classes.txt"
        return Verdict(rule="mask values", status="warned", message=message)
    return Verdict(rule="mask values", status="passed", message=message)


def _ranges(values: Sequence[int]) -> str:
    """0, 1, 2, 254, 255 -> ``0-2, 254-255``."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def mask_polarity(prints: Sequence[Fingerprint]) -> Verdict:
    """Objects seldom fill most of a picture and most of its border at once; inverted masks do nearly always."""
    share = statistics.median(found.shares[1] for found in prints)
    border = statistics.median(found.border_share for found in prints)
    told = f"foreground covers {share:.0%} of the median mask and {border:.0%} of its border"
    status: Status = "failed" if share > 0.5 and border > 0.5 else "passed"
    return Verdict(rule="mask polarity", status=status, message=told + (INVERTED if status == "failed" else ""))


def _classes(benchmark: Benchmark, prints: Sequence[Fingerprint]) -> Verdict:
    seen = {index for found in prints for index, share in enumerate(found.shares) if share > 0}
    absent = [benchmark.class_names[index] for index in range(benchmark.num_classes) if index not in seen]
    if absent:
        return Verdict(rule="classes", status="failed", message=f"never in a mask: {', '.join(absent)}")
    return Verdict(rule="classes", status="passed", message=f"all {benchmark.num_classes} classes occur")


def one_class_masks(prints: Sequence[Fingerprint], root: Path) -> Verdict:
    """Masks without an object are a fact of some data (most tiles have no defect); where none has one, nothing can be learnt."""
    single = [found for found in prints if max(found.shares, default=0.0) >= 1.0]
    if not single:
        return Verdict(rule="one-class masks", status="passed", message="every mask holds at least two classes")
    message = f"{len(single)} of {len(prints)} masks hold one class only"
    if 2 * len(single) > len(prints):
        message += "; a score counts an empty mask as right where nothing is found in it"
    status: Status = "failed" if len(single) == len(prints) else "warned"
    return Verdict(rule="one-class masks", status=status, message=message, files=_files(single, root))


def image_and_mask_size(benchmark: Benchmark, prints: Sequence[Fingerprint], root: Path) -> Verdict:
    wrong = [found for found in prints if found.image_size != found.mask_size]
    if not wrong:
        return Verdict(rule="image and mask size", status="passed", message="equal in every pair")
    first = wrong[0]
    stored = {found.image_size for found in prints}
    one_side = len(stored) == 1 and len({side for size in stored for side in size}) == 1
    if one_side and getattr(benchmark, "stretched_copies", False):
        (side, _), largest = first.image_size, max(found.mask_size for found in wrong)
        message = (
            f"every image is {side}x{side}, {len(wrong)} masks are not (up to {largest[0]}x{largest[1]}): a copy with "
            "stretched images; they are scaled to their masks when read"
        )
        return Verdict(rule="image and mask size", status="warned", message=message, files=_files(wrong, root))
    message = (
        f"{len(wrong)} masks have another size than their image, which is scaled to the mask when read; the first: "
        f"{first.pair.stem}, image {first.image_size[0]}x{first.image_size[1]}, mask {first.mask_size[0]}x{first.mask_size[1]}"
    )
    return Verdict(rule="image and mask size", status="warned", message=message, files=_files(wrong, root))


def _exif(prints: Sequence[Fingerprint], root: Path) -> Verdict:
    turned = [found for found in prints if found.orientation != 1]
    if not turned:
        return Verdict(rule="EXIF rotation", status="passed", message="none")
    message = f"{len(turned)} images are stored rotated; they are turned upright when read"
    return Verdict(rule="EXIF rotation", status="warned", message=message, files=_files(turned, root))


def _exact(prints: Sequence[Fingerprint], root: Path) -> list[Verdict]:
    groups = exact_groups(prints)
    across = [group for group in groups if len({found.split for found in group}) > 1]
    within = [group for group in groups if len({found.split for found in group}) == 1]
    return [
        _copies("exact copies within a split", within, root, bad="warned"),
        _copies("exact copies across splits", across, root, bad="failed"),
    ]


def _near(prints: Sequence[Fingerprint], root: Path) -> list[Verdict]:
    pairs = [list(pair) for pair in near_pairs(prints)]
    across = [pair for pair in pairs if pair[0].split != pair[1].split]
    within = [pair for pair in pairs if pair[0].split == pair[1].split]
    return [
        _copies("near copies within a split", within, root, bad="warned"),
        _copies("near copies across splits", across, root, bad="failed"),
    ]


def _copies(rule: str, groups: Sequence[Sequence[Fingerprint]], root: Path, *, bad: Status) -> Verdict:
    if not groups:
        return Verdict(rule=rule, status="passed", message="none")
    names = [[f"{found.split}: {label(found.pair.image, root)}" for found in group] for group in groups]
    told = tuple(" = ".join(group) for group in names)
    message = f"{len(groups)} groups; the first: {told[0]}"
    return Verdict(rule=rule, status=bad, message=message, files=told[:_FILES_LISTED])
