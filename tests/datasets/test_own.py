"""Folders of one's own as benchmarks: every layout gives its pairs, what is given is kept, what is not understood is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.data import main
from harness.datasets.base import DataOptions, DatasetError, Splits
from harness.datasets.own import any_folder, read_classes
from harness.datasets.preparing.checking import first_look, groups_apart
from harness.datasets.readers.folder_benchmark import CARVED, FolderBenchmark
from tests.datasets.conftest import opened

STEMS = [f"site{site}_r{row}c0" for site in range(8) for row in range(3)]
SPLITS = (("train", STEMS[:16]), ("val", STEMS[16:20]), ("test", STEMS[20:]))
DRAWN = np.zeros((24, 30), np.uint8)
DRAWN[8:12, 6:20] = 1
PALETTE = [0, 0, 0, 128, 0, 0, *[0] * (3 * 253), 224, 224, 192]
Draw = Callable[[Path], None]


def photograph(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(path)
    return path


def mask(path: Path, values: np.ndarray | None = None, palette: Sequence[int] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = DRAWN * np.uint8(255) if values is None else values
    image = Image.fromarray(values)
    if palette:
        image.putpalette(list(palette))
    image.save(path)


def bands(*values: int) -> Draw:
    """A mask with an area of each value."""
    drawn = np.full((24, 30), values[0], np.uint8)
    for position, value in enumerate(values[1:]):
        drawn[8:12, 6 * position + 2 : 6 * position + 6] = value
    return lambda path: mask(path, drawn)


def write(
    root: Path,
    image: str = "images/{}.jpg",
    drawn: str = "masks/{}_mask.png",
    stems: Iterable[str] = STEMS,
    draw: Draw = mask,
) -> Path:
    for number, stem in enumerate(stems):
        photograph(root / image.format(stem), number)
        draw(root / drawn.format(stem))
    return root


def write_csv(root: Path, header: str, row: str, **files: Sequence[str]) -> None:
    write(root, "a/{}.jpg", "b/{}.png")
    for name, stems in files.items():
        (root / f"{name}.csv").write_text("\n".join([*header.splitlines(), *(row.format(stem) for stem in stems)]))


def write_column(root: Path, column: str = "split", **words: str) -> None:
    """One CSV with a column of splits."""
    write(root, "a/{}.jpg", "b/{}.png")
    rows = [f"a/{stem}.jpg,{words.get(split, split)},b/{stem}.png" for split, stems in SPLITS for stem in stems]
    (root / "pairs.csv").write_text("\n".join([f"image,{column},label", *rows]))


def every(splits: Splits) -> list[str]:
    return sorted(pair.stem for part in splits.parts.values() for pair in part)


def sizes(splits: Splits) -> tuple[int, ...]:
    return tuple(len(part) for part in splits.parts.values())


# --- layouts


@pytest.mark.parametrize(
    ("image", "drawn", "layout"),
    [
        ("images/{}.jpg", "masks/{}.png", "folders"),
        ("unpacked/img/{}.png", "unpacked/labels/{}_mask.png", "folders"),
        ("img_dir/{}_leftImg8bit.png", "ann_dir/{}_gtFine_labelTrainIds.png", "folders"),
        ("Images/img_{}.png", "Masks/mask_{}.png", "folders"),
        ("images/{}_training.tif", "1st_manual/{}_manual1.gif", "folders"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", "voc"),
        ("imagesTr/{}_0000.png", "labelsTr/{}.png", "nnu-net"),
        ("{}.png", "{}_mask.png", "one folder"),
        ("{}.jpg", "{}.png", "one folder"),
        ("train/{}.jpg", "train/{}_seg.png", "one folder"),
    ],
)
def test_usual_layouts_are_recognised_and_paired(tmp_path: Path, image: str, drawn: str, layout: str) -> None:
    write(tmp_path, image, drawn)
    (tmp_path / "loop").symlink_to("loop")  # hides no folder beside it
    benchmark, splits = opened(tmp_path)
    assert (splits.layout, sizes(splits)) == (layout, (20, 2, 2))
    assert splits.rule.startswith("carved (seed 0, 2 test and 2 val by hashed stem)")
    for pair in (pair for part in splits.parts.values() for pair in part):
        (stem,) = [stem for stem in STEMS if stem in pair.image.name]
        assert stem in pair.mask.name
    np.testing.assert_array_equal(benchmark.read(splits.test["test"][0]).mask, DRAWN)


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image,label", "a/{0}.jpg,b/{0}.png"),
        ("id,filename,mask_path", "{0},a/{0}.jpg,b/{0}.png"),
        ("segmentation,photo", "b/{0}.png,a/{0}.jpg"),
        ("first,second", "a\\{0}.jpg,b\\{0}.png"),
        ("", "a/{0}.jpg,b/{0}.png"),
    ],
)
def test_a_csv_may_call_its_columns_otherwise_or_not_at_all(tmp_path: Path, header: str, row: str) -> None:
    write_csv(tmp_path, header, row, pairs=STEMS)
    benchmark, splits = opened(tmp_path)
    assert (splits.layout, every(splits)) == ("csv", sorted(STEMS))
    np.testing.assert_array_equal(benchmark.read(splits.train[0]).mask, DRAWN)


def test_voc_leaves_images_without_a_mask_and_takes_its_lists(tmp_path: Path) -> None:
    drawn = DRAWN.copy()
    drawn[7] = 255
    write(tmp_path, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", draw=lambda path: mask(path, drawn, PALETTE))
    photograph(tmp_path / "JPEGImages/detection_only.jpg")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, stems in (("train", STEMS[:20]), ("val", STEMS[20:]), ("trainval", STEMS)):
        (lists / f"{name}.txt").write_text("\n".join(stems))
    benchmark, splits = opened(tmp_path)
    assert every(splits) == sorted(STEMS)
    assert {pair.stem for pair in splits.val} == set(STEMS[20:])
    assert splits.rule.startswith("given val; test carved")
    assert set(np.unique(benchmark.read(splits.val[0]).mask)) == {0, 1, 255}, "the border between objects is ignored"
    (lists / "val.txt").unlink()
    assert every(opened(tmp_path)[1]) == sorted(STEMS[:20]), "train.txt alone says what there is, and it is split here"


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ({"background": 0, "liver": 1, "tumour": 2, "ignore": 3}, ("background", "liver", "tumour")),
        ({"background": 0, "liver": 1, "ignore": 2}, ("background", "liver")),
        ({"background": 0, "foreground": 1, "ignore": 2}, ("background", "foreground")),
    ],
)
def test_nnunets_ignore_label_is_ignored_and_no_class(tmp_path: Path, labels: dict, classes: tuple[str, ...]) -> None:
    count = len(classes)
    write(tmp_path, "imagesTr/{}_0000.png", "labelsTr/{}.png", STEMS[:15], bands(*range(count + 1)))
    write(tmp_path, "imagesTs/{}_0000.png", "labelsTs/{}.png", STEMS[15:], bands(0, 1))
    write(tmp_path, "imagesTs/{}_0000.png", "labelsTs/{}.png", STEMS[-1:], bands(0, count))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "rgb"}}))
    benchmark, splits = opened(tmp_path)
    assert benchmark.class_names == classes
    assert {pair.mask.stem for pair in splits.test["test"]} == set(STEMS[15:])
    assert np.unique(benchmark.read(splits.train[0]).mask).tolist() == [*range(count), 255]
    tests = {pair.mask.stem: np.unique(benchmark.read(pair).mask).tolist() for pair in splits.test["test"]}
    assert tests[STEMS[15]] == [0, 1]
    assert tests[STEMS[-1]] == [0, 255], "no object, and an area to ignore"


def test_nnunets_test_images_without_labels_are_not_tested_and_the_rule_says_so(tmp_path: Path) -> None:
    write(tmp_path, "imagesTr/{}_0000.png", "labelsTr/{}.png")
    photograph(tmp_path / "imagesTs/more_0000.png")
    assert opened(tmp_path)[1].rule.endswith("; 1 images of imagesTs/ have no labels and are not tested")


@pytest.mark.parametrize("object_value", [1, 255])
def test_nnunets_foreground_is_the_object_where_its_labels_ignore_nothing(tmp_path: Path, object_value: int) -> None:
    write(tmp_path, "imagesTr/{}_0000.png", "labelsTr/{}.png", STEMS, bands(0, object_value))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "foreground": 1}}))
    benchmark, splits = opened(tmp_path)
    assert np.unique(benchmark.read(splits.train[0]).mask).tolist() == [0, 1]


# --- splits


@pytest.mark.parametrize(
    "lay",
    [
        lambda root: [write(root / split, stems=stems) for split, stems in SPLITS],
        lambda root: [write(root, f"img/{s}/{{}}.jpg", f"gt/{s}/{{}}.png", stems) for s, stems in SPLITS],
        lambda root: [write(root / split, "{}.jpg", "{}_mask.png", stems) for split, stems in SPLITS],
        lambda root: write_csv(root, "image,label", "a/{0}.jpg,b/{0}.png", **dict(SPLITS)),
        lambda root: write_csv(
            root, "", "a/{0}.jpg,b/{0}.png", **{f"{s}ing" if s != "val" else "valid": x for s, x in SPLITS}
        ),
        write_column,
        lambda root: write_column(root, "Fold", val="dev", test="testing"),
        lambda root: write_column(root, "subset"),
        lambda root: write_column(root, "phase"),
        lambda root: write_column(root, "usage"),
        lambda root: write_column(root, "Data Split"),
    ],
)
def test_given_splits_are_kept(tmp_path: Path, lay: Callable[[Path], object]) -> None:
    lay(tmp_path)
    _, splits = opened(tmp_path)
    assert splits.rule == "given"
    assert {name: {pair.stem for pair in part} for name, part in splits.parts.items()} == {
        name: set(stems) for name, stems in SPLITS
    }


@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "valid", "Testing")])
@pytest.mark.parametrize("folder", ["", "splits"])
def test_lists_split_a_folder(tmp_path: Path, names: tuple[str, ...], folder: str) -> None:
    write(tmp_path)
    (tmp_path / folder).mkdir(exist_ok=True)
    for name, (_, stems) in zip(names, SPLITS, strict=True):
        (tmp_path / folder / f"{name}.txt").write_text("\n".join(stems[:4]))
    _, splits = opened(tmp_path)
    assert sizes(splits) == (4, 4, 4)
    assert splits.rule.endswith("/ (4/4/4); 12 images in no list left out")


@pytest.mark.parametrize(
    ("lay", "rule"),
    [
        (lambda root: write(root / "train"), "carved (seed 0, 2 test and 2 val"),
        (lambda root: [write(root / s, stems=x) for s, x in SPLITS if s != "val"], "given test; val carved (seed 0"),
        (lambda root: [write(root / s, stems=x) for s, x in SPLITS if s != "test"], "given val; test carved (seed 0"),
        (lambda root: [write(root, stems=STEMS[4:]), write(root / "test", stems=STEMS[:4])], "given test; val carved"),
        (lambda root: [write(root), (root / "test.txt").write_text("\n".join(STEMS[:4]))], "given test; val carved"),
        (
            lambda root: [
                write(root),
                (root / "test.txt").write_text("".join(f"{s}.jpg\t{s}.png\n" for s in STEMS[:4])),
            ],
            "given test; val carved",
        ),
        (lambda root: write_column(root, "set", train="A", val="B", test="A"), "carved"),
    ],
)
def test_what_is_missing_is_carved(tmp_path: Path, lay: Callable[[Path], object], rule: str) -> None:
    lay(tmp_path)
    _, splits = opened(tmp_path)
    assert splits.rule.startswith(rule)
    assert all(sizes(splits))
    assert len(set(every(splits))) == len(every(splits)) in (20, 24)
    assert opened(tmp_path, split_rule=CARVED)[1].rule.startswith("carved")


def _lay(root: Path, name: str, text: str, encoding: str = "utf-8") -> int:
    """Folders of images and masks, and a file."""
    write(root)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    return (root / name).write_bytes(text.encode(encoding))


def _table(root: Path, name: str, separator: str = ",", encoding: str = "utf-8") -> None:
    """A CSV of a split next to ``train.csv``, both in one form."""
    for file, stems in (("train.csv", STEMS[4:]), (name, STEMS[:4])):
        rows = ["image,label", *(f"images/{stem}.jpg,masks/{stem}_mask.png" for stem in stems)]
        _lay(root, file, "\n".join(rows).replace(",", separator), encoding)


FOUR = "\n".join(STEMS[:4])


@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("{}.txt", FOUR, "utf-8"), ("{}.txt", FOUR, "utf-8-sig"), ("{}.txt", FOUR, "utf-16"), ("{}.TXT", FOUR, "utf-8"),
        ("{}.txt", FOUR.replace("\n", ","), "utf-8"), ("{}.txt", FOUR.replace("\n", "; "), "utf-8"),
        ("{}.txt", FOUR.replace("\n", "\t"), "utf-8"), ("{}.txt", FOUR.replace("\n", ".jpg\r\n"), "utf-8"),
    ],
)  # fmt: skip
def test_a_list_is_read_in_usual_encodings_and_with_usual_separators(tmp_path, split, name, text, encoding) -> None:
    _lay(tmp_path, name.format(split), text, encoding)
    _, splits = opened(tmp_path)
    assert {pair.stem for pair in splits.parts[split]} == set(STEMS[:4])
    assert [*splits.lists.values()] == [name.format(split)]
    assert splits.tested == ("carved" if split == "val" else "given")


@pytest.mark.parametrize(
    ("name", "separator", "encoding"),
    [("test.csv", ",", "utf-16"), ("test.csv", ";", "utf-8-sig"), ("test.CSV", "\t", "utf-8")],
)
def test_a_csv_is_read_in_usual_encodings_and_with_usual_separators(tmp_path, name, separator, encoding) -> None:
    _table(tmp_path, name, separator, encoding)
    _, splits = opened(tmp_path)
    assert {pair.stem for pair in splits.test["test"]} == set(STEMS[:4])
    assert splits.lists[tmp_path / name] == f"{name} (image: column image, mask: column label)"


NOT_USED: dict[str, Callable[[Path], object]] = {
    "test.txt is empty": lambda root: _lay(root, "test.txt", ""),
    "test.txt names 4 images": lambda root: _lay(root, "test.txt", FOUR.replace("\n", "_mask\n") + "_mask"),
    "training.txt names 1 images": lambda root: _lay(root, "training.txt", "trained with sam\n"),
    "test.txt is not a readable list": lambda root: _lay(root, "test.txt", "M\u00e4rz", "latin-1"),
    "test.csv is not a readable CSV": lambda root: _lay(root, "test.csv", '"' + "x" * 200_000),
    "test.csv does not have two columns": lambda root: _lay(root, "test.csv", "image,label\nx.jpg,7\n"),
    "notes.csv looks like a split": lambda root: _lay(root, "notes.csv", "id,split\na,test\nb,later\n"),
    "test.csv is not a readable list": lambda root: _lay(root, "test.csv", "\u00e4,b\n", "latin-1"),
    "has test.csv; call lists of splits": lambda root: _lay(root, "test.csv", f"images/{STEMS[0]}.jpg,masks/{STEMS[0]}_mask.png\n"),
    "'0' in its column fold, which is not a split": lambda root: write_column(root, "fold", train="0", val="1", test="2"),
    "test.csv looks like a split": lambda root: _lay(root, "test.csv", "id\n7\n"),
    "split.csv looks like a split": lambda root: _lay(root, "split.csv", f"id,split\n{STEMS[0]},test\n"),
    "info.csv looks like a split": lambda root: _lay(root, "info.csv", f"id,Data Split\n{STEMS[0]},test\n"),
    "splits.json looks like a split": lambda root: _lay(root, "splits.json", "{}"),
    "split.yaml looks like a split": lambda root: _lay(root, "train_test_split.yaml", "test: []"),
    "test looks like a split": lambda root: [write(root), photograph(root / "test" / "a.jpg")],
    "img/test looks like a split": lambda root: [write(root, "img/train/{}.jpg", "gt/train/{}.png"), photograph(root / "img/test/a.jpg")],
    "eval looks like a split": lambda root: [write(root / folder, stems=STEMS[:3]) for folder in ("train", "eval")],
    "kvasir_test.txt looks like a split": lambda root: _lay(root, "splits/kvasir_test.txt", FOUR),
    "testset.txt looks like a split": lambda root: [_lay(root, name, FOUR[at:]) for name, at in (("train.txt", 0), ("testset.txt", 22))],
    "kept.csv looks like a split": lambda root: _lay(root, "kept.csv", f"filename\n{STEMS[0]}.png\n{STEMS[1]}.png\n"),
    "kept.json looks like a split": lambda root: _lay(root, "kept.json", json.dumps(STEMS[:2])),
    "info.json looks like a split": lambda root: _lay(root, "info.json", json.dumps({x: split for split, stems in SPLITS for x in stems})),
    "info.txt looks like a split": lambda root: _lay(root, "info.txt", "\n".join(f"{x}\t{part}" for part, stems in SPLITS for x in stems)),
    "test_public.csv looks like a split": lambda root: [
        _lay(root, "test_public.csv", "id\n7\n"), *((root / f"a{n}.txt").write_text("0 0.5") for n in range(120))
    ],
    "meta/a/test.txt looks like a split": lambda root: _lay(root, "meta/a/test.txt", FOUR),
    "test_hidden looks like a split": lambda root: [write(root / part, stems=STEMS[:9]) for part in ("train", "test", "test_hidden")],
    "validate looks like a split": lambda root: [write(root / part, stems=STEMS[:9]) for part in ("train", "test", "validate")],
    "'0' in its column holdout": lambda root: write_column(root, "holdout", train="0", val="0", test="1"),
    "held looks like a split": lambda root: [write(root), write(root / "held", stems=STEMS[:3])],
    "call lists of splits train.csv": lambda root: _table(root, "test_set.csv"),
    "'0' in its column set": lambda root: write_column(root, "set", train="0", val="0", test="1"),
    "'tr' in its column usage": lambda root: write_column(root, "usage", train="tr", val="va", test="te"),
    "'0' in its column is_test": lambda root: write_column(root, "is_test", train="0", val="0", test="1"),
    "test_images looks like a split": lambda root: [write(root), write(root, "test_images/{}.jpg", "test_masks/{}.png", STEMS[:2])],
    "img/eval looks like a split": lambda root: [write(root, f"img/{s}/{{}}.jpg", f"gt/{s}/{{}}.png") for s in ("train", "eval")],
    "b/test looks like a split": lambda root: [
        write(root, "b/test/{}.jpg", "m/{}.png"), _lay(root, "pairs.csv", "\n".join(f"b/test/{s}.jpg,m/{s}.png" for s in STEMS))
    ],
    "Main/test.txt looks like a split": lambda root: _lay(root, "ImageSets/Main/test.txt", FOUR),
    "both belong to the test split": lambda root: [write(root / s, stems=x) for s, x in (*SPLITS, ("testing", ["x"]))],
    "both lists of test": lambda root: [_lay(root, name, FOUR) for name in ("test.txt", "splits/test.txt")],
    "lies above": lambda root: [write(root / "data"), (root / "test.txt").write_text(FOUR)],
    "kept.txt looks like a split and lies above": lambda root: [write(root / "data"), (root / "kept.txt").write_text(FOUR)],
    "is in test and in train": lambda root: [_lay(root, name, FOUR) for name in ("train.txt", "test.txt")],
    "lists in two folders": lambda root: [_lay(root, name, FOUR) for name in ("test.txt", "splits/train.txt")],
    "in its column split and in its column fold": lambda root: write_column(
        root, "split,fold", train="train,train", val="val,test", test="test,test"
    ),
    "'A' in its column split, which is not a split": lambda root: write_column(root, train="A", val="B", test="C"),
    "pairs.csv is not a readable list": lambda root: [write(root, "a/{}.jpg", "b/{}.png"), (root / "pairs.csv").write_bytes(b"\xe4,b")],
    "pairs.csv names images and masks": lambda root: write_csv(root, "", "x/{0}.jpg,y/{0}.png", pairs=STEMS),
}  # fmt: skip
"""Word of the message -> a folder with something that looks like a split and cannot be used. The last two are no folders of classes."""


@pytest.mark.parametrize("word", NOT_USED)
def test_what_looks_like_a_split_and_is_not_used_stops_a_run(tmp_path: Path, word: str) -> None:
    NOT_USED[word](tmp_path)
    with pytest.raises(DatasetError, match=re.escape(word)):
        opened(tmp_path)


def test_a_split_that_is_not_used_may_be_carved_over(tmp_path: Path, capsys) -> None:
    NOT_USED["splits.json looks like a split"](tmp_path)
    assert opened(tmp_path, split_rule=CARVED)[1].tested == "carved"
    main(["check", f"mine={tmp_path}", "--split-rule", CARVED])
    assert "counts: not compared" in capsys.readouterr().out


@pytest.mark.parametrize("given", [{"": STEMS}, {"train": STEMS[:18], "val": STEMS[18:]}], ids=["nothing", "val"])
def test_a_group_rule_keeps_what_belongs_together_on_one_side(tmp_path: Path, given: dict[str, list[str]]) -> None:
    for split, stems in given.items():
        write(tmp_path / split, stems=stems)
    _, splits = opened(tmp_path, group=r"(.+)_r\d+c\d+")
    sides = [{pair.stem.partition("_")[0] for pair in part} for part in splits.parts.values()]
    assert len(set().union(*sides)) == sum(map(len, sides))
    assert "by groups of" in splits.rule
    with pytest.raises(DatasetError, match="fits no part of the name 'site0_r0c0'"):
        opened(tmp_path, group="patient(.)")


@pytest.mark.parametrize(
    ("train", "test", "word"),
    [
        (["a_r0c0", "b_r0c1"], ["a_r1c0"], "1 of 1 test images are named like training or validation images (a_r1c0, a_r0c0)"),
        (["a_scaled_1", "b_scaled_2"], ["b_scaled_31", "c"], "1 of 2 test images"),
        (["a-1", "b 2", "c3"], ["a-2"], "1 of 1 test images"),
        (["img_1", "img_2"], ["img_3"], ""),
        (["0001", "1002"], ["0003"], ""),
        (["2007_000032", "2008_000033"], ["2007_000034"], ""),
    ],
)  # fmt: skip
def test_names_that_share_a_beginning_across_splits_are_warned_of(tmp_path, capsys, train, test, word) -> None:
    write(tmp_path / "train", stems=train)
    write(tmp_path / "val", stems=["v"])
    write(tmp_path / "test", stems=test)
    benchmark, splits = opened(tmp_path)
    assert isinstance(benchmark, FolderBenchmark)
    assert any(word and word in line for line in first_look(benchmark, splits, tmp_path)) is bool(word)
    main(["check", f"mine={tmp_path}"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "groups across splits" in line]
    assert word in line
    assert (line.split()[0], "not checked: no rule" in line) == ("warned" if word else "skipped", True)


def test_a_check_says_what_it_read_and_what_it_left(tmp_path: Path, capsys) -> None:
    write(tmp_path, drawn="1st_manual/{}.png")
    write(tmp_path, drawn="mask/{}.png")
    for name in ("splits/test.txt", "notes.txt", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(FOUR)
    main(["check", f"mine={tmp_path}"])
    lines = capsys.readouterr().out.splitlines()
    assert any("read: images/ with 1st_manual, splits/test.txt" in line for line in lines)
    assert any("warned  not read: 2: mask/, notes.txt" in line for line in lines)


def test_groups_are_found_where_splits_number_their_files_alike(tmp_path: Path, capsys) -> None:
    for split, first in (("train", 0), ("val", 20), ("test", 2)):
        write(tmp_path / split, stems=[f"p5_{first + number}" for number in range(3)] + [f"{split}_0"])
    benchmark, splits = opened(tmp_path, group=r"(.+)_\d+")
    assert {pair.stem for pair in splits.train} >= {"train_p5_0", "train_train_0"}  # p5_2 is in train and in test
    assert main(["check", f"mine={tmp_path}", "--group", r"(.+)_\d+"]) == 1
    assert "failed  groups across splits: 1 of 4 groups have images in several splits" in capsys.readouterr().out
    assert isinstance(benchmark, FolderBenchmark)
    for look in (first_look, groups_apart):  # which a run takes
        with pytest.raises(DatasetError, match="move each to one side"):
            look(benchmark, splits, tmp_path)


def test_names_of_two_splits_that_differ_in_case_alone_stay_two(tmp_path: Path) -> None:
    """Tables of scores are compared without case."""
    for split, stems in (("train", ["a", "b", "c", "d"]), ("test", ["A", "e"])):
        write(tmp_path / split, stems=stems)
    assert {pair.stem for pair in opened(tmp_path)[1].test["test"]} == {"test_A", "test_e"}


@pytest.mark.parametrize("mark", ["\u00e4", "a\u0308"])
def test_an_accent_may_be_a_character_of_its_own_in_one_of_two_names(tmp_path: Path, mark: str) -> None:
    """As in folders and lists that were made on a Mac."""
    for number in range(8):
        photograph(tmp_path / "images" / f"a\u0308{number}.jpg", number)
        mask(tmp_path / "masks" / f"\u00c4{number}.png")
    for split, numbers in (("train", "01234"), ("test", "567")):
        (tmp_path / f"{split}.txt").write_text("\n".join(f"{mark}{number}" for number in numbers), encoding="utf-8")
    _, splits = opened(tmp_path)
    assert [pair.image.stem[-1] for pair in splits.test["test"]] == ["5", "6", "7"]


# --- refusals


def _csv_with(root: Path, train: str, test: str = "") -> None:
    write(root, "a/{}.jpg", "b/{}.png")
    for name, text in (("train", train), ("test", test)):
        if text:
            (root / f"{name}.csv").write_text(f"image,label\n{text}")


def _rows(stems: Sequence[str], row: str = "a/{0}.jpg,b/{0}.png") -> str:
    return "\n".join(row.format(stem) for stem in stems)


def _dummy(root: Path) -> None:
    write(root / "dummy", stems=STEMS[:2])
    write(root, "radiographs/{}.png", "outlines/{}.png")


def _beside(root: Path) -> None:
    write(root / "read", stems=STEMS[:2])
    for stem in STEMS:
        photograph(root / "a" / f"{stem}.jpg")


def _two_sets(root: Path) -> None:
    write(root / "few", stems=STEMS[:2])
    write(root / "many")


def _channels(root: Path) -> None:
    write(root, "imagesTr/{}_0000.png", "labelsTr/{}.png")
    photograph(root / f"imagesTr/{STEMS[0]}_0001.png")


def _label_missing(root: Path) -> None:
    write(root, "imagesTr/{}_0000.png", "labelsTr/{}.png")
    photograph(root / "imagesTr/more_0000.png")


def _pages(root: Path) -> None:
    write(root)
    pages = [Image.new("L", (30, 24), level) for level in (9, 99)]
    (root / f"images/{STEMS[0]}.jpg").unlink()
    pages[0].save(root / f"images/{STEMS[0]}.tif", save_all=True, append_images=pages[1:])


@pytest.mark.parametrize(
    ("lay", "word"),
    [
        (lambda root: None, "give a folder with images/ with masks/"),
        (lambda root: write(root, "images/{}.jpg", "masks/odd.png"), "no names pair"),
        (lambda root: [write(root), write(root, "images/more/{}.jpg", "masks/more/{}.png", "ab")], "more/"),
        (lambda root: [write(root, f"images/{p}/{{}}.jpg", f"masks/{p}/{{}}.png", "ab") for p in "pq"], "a CSV"),
        (lambda root: [write(root), write(root / "train")], "and also"),
        (lambda root: (write(root), (root / "images" / f"{STEMS[0]}.png").write_bytes(b"")), "have one name"),
        (lambda root: _csv_with(root, _rows(STEMS[:9]), _rows(STEMS[8:])), "and in test; take it out"),
        (lambda root: _csv_with(root, _rows(STEMS[:9]), _rows(STEMS[8:9], "a/../a/{0}.jpg,b/x.png")), "missing"),
        (lambda root: _csv_with(root, _rows(STEMS[:9]), _rows(STEMS[8:9], "a/../a/{0}.jpg,b/{0}.png")), "and in test; take it out"),
        (lambda root: _csv_with(root, _rows(STEMS, "a/{0}.jpg,b/site0_r0c0.png")), "is the mask of"),
        (lambda root: _csv_with(root, "a/gone.jpg,b/gone.png"), "missing"),
        (lambda root: _csv_with(root, _rows(STEMS) + "\na/x.jpg,"), "without image or label"),
        (lambda root: (write(root), (root / "train.csv").write_text("filename,m\ni0.jpg,i0.png\n")), "missing"),
        (lambda root: write_column(root, val="later"), "'later' in its column split"),
        (lambda root: write_csv(root, "image,label", "a/{0}.jpg,b/{0}.png", one=STEMS[:9], two=STEMS[9:]), "call lists"),
        (
            lambda root: write_csv(root, "image,label", "a/{0}.jpg,b/{0}.png", train=STEMS[:9], val=STEMS[9:], valid=STEMS),
            "both lists of val",
        ),
        (lambda root: [photograph(root / f"{stem}.{end}") for stem in STEMS for end in ("jpg", "jpeg")], "give a folder with"),
        (lambda root: [photograph(root / f"{a}/{b}/{n}.png") for a in "pq" for b in "xy" for n in "12"], "several data sets"),
        (lambda root: [photograph(root / f"imagesTr/{stem}_0000.png") for stem in STEMS], "give a folder with"),
        (_dummy, "further images that would not be read: outlines/ (24), radiographs/ (24)"),
        (_beside, "further images that would not be read: a/ (24)"),
        (_two_sets, "(24 pairs); give one, such as mine=FOLDER/many"),
        (_channels, "second channel"),
        (_label_missing, "1 images of mine have no mask, first"),
        (_pages, "2 pages"),
        (lambda root: photograph(root / "scan.nii.gz/0.png"), "Unpack archives; save volumes"),
        (lambda root: [write(root, drawn=f"masks/{{}}/{half}.png") for half in "ab"], "one mask per image"),
        (lambda root: [write(root / s, "images/{}.png", f"masks/{half}.png", [s]) for s in STEMS for half in "ab"], "several data sets"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_one_line(tmp_path: Path, capsys, lay: Callable[[Path], object], word: str) -> None:
    lay(tmp_path)
    assert main(["check", f"mine={tmp_path}"]) in (1, 2)
    output = capsys.readouterr()
    assert word in (output.out + output.err).replace(str(tmp_path), "FOLDER")
    assert len(output.err.splitlines()) <= 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["mine"], "mine is not a benchmark"),
        (["mine=/no/such/folder"], "no folder /no/such/folder for mine"),
        (["../x=DIR"], "../x is a folder without a name"),
        (["kvasir", "--group", "x"], "--group is for data of your own"),
        (["mine=DIR", "--group", "("], "is not a regular expression"),
        (["mine=DIR", "--split-rule", "nope"], "mine has no split rule 'nope'"),
        (["mine=DIR", "--category", "cell"], "applies to COCO files"),
    ],
)
def test_a_wrong_command_is_one_line(tmp_path: Path, says, arguments: list[str], word: str) -> None:
    write(tmp_path)
    assert word in says(main, "check", *(each.replace("=DIR", f"={tmp_path}") for each in arguments), code=2)


# --- masks


@pytest.mark.parametrize("mask_lies", [False, True])
def test_an_image_that_lies_on_its_side_is_turned_where_its_mask_is_upright(tmp_path: Path, mask_lies: bool) -> None:
    write(tmp_path, "images/{}.png")
    stored, exif = Image.open(tmp_path / f"images/{STEMS[0]}.png"), Image.Exif()
    exif[274] = 6  # to be turned clockwise
    stored.save(tmp_path / f"images/{STEMS[0]}.png", exif=exif)
    if not mask_lies:
        mask(tmp_path / f"masks/{STEMS[0]}_mask.png", np.rot90(DRAWN, -1) * np.uint8(255))
    benchmark, splits = opened(tmp_path)
    (pair,) = [pair for part in splits.parts.values() for pair in part if pair.stem == STEMS[0]]
    sample, turns = benchmark.read(pair), 0 if mask_lies else -1
    np.testing.assert_array_equal(sample.image, np.rot90(np.asarray(stored), turns))
    np.testing.assert_array_equal(sample.mask, np.rot90(DRAWN, turns))


def test_classes_make_it_one_of_several_classes_and_255_is_ignored(tmp_path: Path) -> None:
    write(tmp_path, draw=bands(0, 1, 2, 255))
    (tmp_path / "classes.txt").write_text("ground\ntree\n\nhouse\n")
    benchmark, splits = opened(tmp_path)
    assert (benchmark.task, benchmark.class_names) == ("multiclass", ("ground", "tree", "house"))
    assert (benchmark.metrics, benchmark.selection_metric) == (("miou", "accuracy"), "miou")
    assert set(np.unique(benchmark.read(splits.val[0]).mask)) == {0, 1, 2, 255}


@pytest.mark.parametrize("text", ["one\n", "a\na\n", "", "x" * 100 + "\nb", "\n".join(map(str, range(300)))])
def test_an_invalid_list_of_classes_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DatasetError, match=r"classes\.txt"):
        read_classes(tmp_path / "classes.txt")


@pytest.mark.parametrize("classes", ["", "background\nlesion\n"])
def test_an_area_to_ignore_is_never_the_object(tmp_path: Path, classes: str) -> None:
    """Grey masks of 0, 1 and 255, as PASCAL VOC's with one class: 255 above half was the object, and 1 was not."""
    write(tmp_path, draw=bands(0, 1, 255))
    if classes:
        (tmp_path / "classes.txt").write_text(classes)
        bands(0, 255)(tmp_path / "masks" / f"{STEMS[0]}_mask.png")  # an image with nothing but an area to ignore
    made, root = any_folder("mine", tmp_path)
    for path in sorted((root / "masks").iterdir())[:3]:
        stored = np.asarray(Image.open(path))
        assert np.array_equal(made(DataOptions()).decode_mask(path), stored), path  # type: ignore[attr-defined]


def _paint(*colours: tuple[int, int, int]) -> Draw:
    queue = [*colours]

    def draw(path: Path) -> None:
        queue.append(queue.pop(0))
        mask(path, DRAWN[..., None] * np.array(queue[-1], np.uint8))

    return draw


def _cycle(*draws: Draw) -> Draw:
    queue = [*draws]

    def draw(path: Path) -> None:
        queue.append(queue.pop(0))
        queue[-1](path)

    return draw


def _indices(value: int) -> Draw:
    return lambda path: mask(path, DRAWN * np.uint8(value), [0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])


def _ids(path: Path) -> None:
    mask(path, np.repeat(np.repeat(np.arange(1, 181, dtype=np.uint8).reshape(12, 15), 2, 0), 2, 1))


@pytest.mark.parametrize(
    ("draw", "classes", "code", "word"),
    [
        (_paint((0, 200, 0)), "", 0, ""),
        (_paint((255, 0, 0), (128, 0, 0), (255, 0, 20), (255, 255, 255)), "", 0, ""),
        (_cycle(_indices(1), _indices(2), _indices(3)), "", 0, "each mask holds one of 1, 2, 3: several classes?"),
        (_cycle(bands(0, 255), bands(0, 1, 255)), "", 1, "masks hold class indices, and 12 hold 0 and 255 alone"),
        (bands(0, 255), "ground\ntree\n", 1, "255, ignored where classes are named"),
        (_ids, "", 1, "ids of objects"),
        (lambda path: mask(path, np.tile(np.arange(3, dtype=np.uint8), (24, 10)), range(9)), "", 1, "a binary palette has two"),
        (bands(0, 1, 7), "a\nb\nc\n", 1, "class indices 7, and there are 3 classes"),
        (lambda path: mask(path, DRAWN * np.uint16(256)), "a\nb\nc\n", 1, "256"),  # in a byte it would be background
    ],
)  # fmt: skip
def test_check_explains_masks(tmp_path: Path, capsys, draw: Draw, classes: str, code: int, word: str) -> None:
    write(tmp_path, draw=draw)
    if classes:
        (tmp_path / "classes.txt").write_text(classes)
    assert main(["check", f"mine={tmp_path}"]) == code
    output = " ".join(capsys.readouterr().out.split())
    assert word in output
    assert ("several classes?" in output) == ("several" in word)


@pytest.mark.parametrize(
    ("count", "first", "others", "word"),
    [
        (120, mask, bands(255, 0), r"inverted\?.*benchmarks.NAME.invert=true"),
        (24, bands(0), bands(0), "every mask of the train split is background"),
    ],
)
def test_the_first_look_before_a_run_is_spread_over_a_split(tmp_path: Path, count, first, others, word) -> None:
    stems = [f"{number:03}" for number in range(count)]
    write(tmp_path, stems=stems[: count // 12], draw=first)
    write(tmp_path, stems=stems[count // 12 :], draw=others)
    benchmark, splits = opened(tmp_path)
    assert isinstance(benchmark, FolderBenchmark)
    with pytest.raises(DatasetError, match=word):
        first_look(benchmark, splits, tmp_path)
