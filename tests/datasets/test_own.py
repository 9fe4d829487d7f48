"""Folders of one's own as benchmarks: every layout, binary and several classes, given and carved splits, groups."""

from __future__ import annotations

import pickle
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.data import main
from harness.datasets import own
from harness.datasets.base import DataOptions, DatasetError, Pair
from harness.datasets.own import own_benchmark, own_folder, read_classes
from harness.registry import dataset_name
from tests.datasets.conftest import opened

STEMS = [f"site{site}_r{row}c0" for site in range(8) for row in range(3)]


def _image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(path)


def _mask(path: Path, values: tuple[int, ...] = (0, 255)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.full((24, 30), values[0], dtype=np.uint8)
    for place, value in enumerate(values[1:]):
        mask[8:12, 6 * place + 2 : 6 * place + 6] = value
    Image.fromarray(mask).save(path)


def _write(root: Path, images: str = "images", masks: str = "masks", stems: list[str] = STEMS, **kind: tuple) -> None:
    for index, stem in enumerate(stems):
        _image(root / images / f"{stem}.jpg", index)
        _mask(root / masks / f"{stem}_mask.png", **kind)


SPLITS = (("train", STEMS[:16]), ("val", STEMS[16:20]), ("test", STEMS[20:]))


def _folder_each(root: Path, images: str = "{}/images", masks: str = "{}/masks") -> None:
    for split, stems in SPLITS:
        _write(root, images.format(split), masks.format(split), stems)


def _lists(root: Path) -> None:
    _write(root)
    for split, stems in SPLITS:
        (root / f"{split}.txt").write_text("\n".join(stems))


def _csv(root: Path, **parts: list[str]) -> None:
    _write(root, "a", "b")
    for name, stems in parts.items():
        (root / f"{name}.csv").write_text("image,label\n" + "".join(f"a/{s}.jpg,b/{s}_mask.png\n" for s in stems))


OTHERWISE = {"train": "training", "val": "valid", "test": "Testing"}


def _lists_by_other_names(root: Path) -> None:
    _write(root)
    for split, stems in SPLITS:
        (root / f"{OTHERWISE[split]}.txt").write_text("\n".join(stems))


def _column(root: Path, name: str = "train", column: str = "split", **words: str) -> None:
    """One CSV with a column of splits."""
    _write(root, "a", "b")
    rows = [f"a/{stem}.jpg,{words.get(split, split)},b/{stem}_mask.png" for split, stems in SPLITS for stem in stems]
    (root / f"{name}.csv").write_text("\n".join([f"image,{column},label", *rows]))


GIVEN, CARVED = (16, 4, 4), (20, 2, 2)


@pytest.mark.parametrize(
    ("write", "sizes", "rule"),
    [
        (_write, CARVED, "carved (seed 0, 2 test and 2 val by hashed stem)"),
        (lambda root: _write(root / "unpacked", "img", "labels"), CARVED, "carved (seed 0, 2 test and 2 val by hashed"),
        (_folder_each, GIVEN, "given"),
        (lambda root: _folder_each(root, "images/{}", "masks/{}"), GIVEN, "given"),
        (_lists, GIVEN, "lists in "),
        (lambda root: _csv(root, **dict(SPLITS)), GIVEN, "given"),
        (lambda root: _csv(root, everything=STEMS), CARVED, "carved (seed 0"),
        (_lists_by_other_names, GIVEN, "lists in "),
        (lambda root: _csv(root, **{OTHERWISE[split]: stems for split, stems in SPLITS}), GIVEN, "given"),
        (_column, GIVEN, "given"),
        (lambda root: _column(root, "pairs", "Fold", val="Validation", test="testing"), GIVEN, "given"),
        (lambda root: _column(root, val="dev"), GIVEN, "given"),
    ],
)
def test_every_layout_gives_its_pairs_and_says_how_they_were_split(tmp_path, write, sizes, rule):
    write(tmp_path / "set")
    benchmark, splits = opened(tmp_path / "set")
    assert (len(splits.train), len(splits.val), len(splits.test["test"])) == sizes
    assert splits.rule.startswith(rule)
    assert {pair.stem for pair in (*splits.train, *splits.val, *splits.test["test"])} == set(STEMS)
    sample = benchmark.read(splits.train[0])
    assert sample.image.shape == (24, 30, 3)
    assert set(np.unique(sample.mask)) == {0, 1}


def _denied(root: Path) -> None:
    _column(root)
    shutil.copy(root / "train.csv", root / "test.csv")


def _two_of_val(root: Path) -> None:
    _csv(root, **dict(SPLITS))
    (root / "val.csv").rename(root / "valid.csv")
    shutil.copy(root / "valid.csv", root / "validation.csv")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda root: _column(root, column="fold", train="0", val="1"),
            "'0', '1' in its column fold, which are no splits",
        ),
        (_denied, "train.csv has other splits than train in its column split"),
        (_two_of_val, "has two lists of the val split, valid.csv and validation.csv; move one"),
        (lambda root: _csv(root, first=STEMS[:9], second=STEMS[9:]), "it has first.csv, second.csv; call lists"),
    ],
)
def test_splits_that_cannot_be_kept_are_one_line(tmp_path: Path, write, message: str) -> None:
    write(tmp_path)
    with pytest.raises(DatasetError, match=re.escape(message)):
        opened(tmp_path)


@pytest.mark.parametrize(("column", "words"), [("fold", "013"), ("set", "ABA")])
def test_a_column_that_says_something_else_than_splits_is_named_and_not_used(tmp_path: Path, column, words) -> None:
    _column(tmp_path, "pairs", column, **dict(zip(("train", "val", "test"), words, strict=True)))
    _, splits = opened(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test["test"])) == CARVED
    assert splits.rule.endswith(f"; not used, as it names no splits: column {column}")


@pytest.mark.parametrize(
    ("write", "name", "text", "sizes"),
    [
        (_write, "training.txt", "trained with sam\nfor 20 epochs\n", CARVED),
        (_write, "training.txt", "trained on M\xe4rz 1st\n", CARVED),
        (_lists, "validation.txt", "\n".join(SPLITS[1][1]), GIVEN),
        (lambda root: _csv(root, train=STEMS), "validation.csv", "epoch,loss\n1,0.5\n", CARVED),
        (lambda root: _csv(root, train=STEMS), "testing.csv", "id,label\n1.jpg,0\n", CARVED),
        (lambda root: _csv(root, train=STEMS), "testing.csv", "image,label\n" + 300 * "x" + ",0\n", CARVED),
        (lambda root: _csv(root, **dict(SPLITS)), "valid.csv", "image,label\na/0.jpg,b/0.png\n", GIVEN),
    ],
)
def test_a_file_that_merely_has_a_splits_name_is_no_list(tmp_path: Path, write, name: str, text: str, sizes) -> None:
    write(tmp_path)
    (tmp_path / name).write_text(text, encoding="latin-1")
    _, splits = opened(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test["test"])) == sizes


def test_lists_that_are_not_used_are_named(tmp_path: Path) -> None:
    _write(tmp_path)
    for name in ("first", "second"):
        (tmp_path / f"{name}.csv").write_text(f"image,label\nimages/{STEMS[0]}.jpg,masks/{STEMS[0]}_mask.png\n")
    assert opened(tmp_path)[1].rule.endswith(
        "not used: first.csv, second.csv; call lists of splits train.csv, val.csv and test.csv"
    )


def test_a_csv_of_folders_that_number_their_files_alike_names_images_by_their_paths(tmp_path: Path) -> None:
    rows = []
    for patient in "ab":
        _write(tmp_path, f"{patient}/img", f"{patient}/seg", STEMS[:4])
        rows += [f"{patient}/img/{stem}.jpg,{patient}/seg/{stem}_mask.png" for stem in STEMS[:4]]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,label", *rows]))
    _, splits = opened(tmp_path)
    pairs = [pair for part in splits.parts.values() for pair in part]
    assert {pair.stem for pair in pairs} == {f"{patient}_img_{stem}" for patient in "ab" for stem in STEMS[:4]}
    assert all(pair.image.parts[-3] == pair.mask.parts[-3] for pair in pairs)
    (tmp_path / "pairs.csv").write_text("\n".join(["image,label", rows[0], rows[0]]))
    with pytest.raises(DatasetError, match="take one out, or rename it"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (("train",), "carved (seed 0, 2 test and 2 val"),
        (("train", "test"), "given test; val carved (seed 0"),
        (("train", "val"), "given val; test carved (seed 0"),
    ],
)
def test_splits_that_are_missing_are_carved_from_training_images(tmp_path, given: tuple[str, ...], rule: str) -> None:
    for number, split in enumerate(given):
        _write(tmp_path / split, stems=STEMS if not number else [f"other{k}" for k in range(3)])
    _, splits = opened(tmp_path)
    assert splits.rule.startswith(rule)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test["test"]}
    assert all(parts.values())
    for split in given[1:]:
        assert {pair.stem for pair in parts[split]} == {"other0", "other1", "other2"}


def test_a_group_rule_keeps_what_belongs_together_on_one_side(tmp_path: Path) -> None:
    _write(tmp_path)
    _, splits = opened(tmp_path, group=r"(.+)_r\d+c\d+")
    sides = [{pair.stem.partition("_")[0] for pair in part} for part in (splits.train, splits.val, splits.test["test"])]
    assert len(set().union(*sides)) == sum(map(len, sides))
    assert "by groups of" in splits.rule
    _, alone = opened(tmp_path)
    assert {pair.stem.partition("_")[0] for pair in alone.test["test"]} & {
        pair.stem.partition("_")[0] for pair in alone.train
    }
    with pytest.raises(DatasetError, match="fits no part of the name 'site0_r0c0'"):
        opened(tmp_path, group="patient(.)")


def test_classes_make_it_one_of_several_classes_and_255_is_ignored(tmp_path: Path) -> None:
    _write(tmp_path, values=(0, 1, 2, 255))
    (tmp_path / "classes.txt").write_text("ground\ntree\n\nhouse\n")

    benchmark, splits = opened(tmp_path)

    assert (benchmark.task, benchmark.num_classes, benchmark.class_names) == (
        "multiclass",
        3,
        ("ground", "tree", "house"),
    )
    assert (benchmark.metrics, benchmark.selection_metric) == (("miou", "accuracy"), "miou")
    assert set(np.unique(benchmark.read(splits.val[0]).mask)) == {0, 1, 2, 255}
    assert pickle.loads(pickle.dumps(benchmark)).class_names == benchmark.class_names
    (tmp_path / "classes.txt").write_text("ground\ntree\n")
    binary, splits = opened(tmp_path)
    assert binary.task == "binary"


@pytest.mark.parametrize("text", ["one\n", "a\na\n", "", "x" * 100 + "\nb", "\n".join(map(str, range(300)))])
def test_a_list_of_classes_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"classes\.txt"):
        read_classes(path)


def _colours(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.zeros((24, 30, 3), dtype=np.uint8)
    colours[:8] = (255, 0, 0)
    Image.fromarray(colours).save(path)


def _palette(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.tile(np.arange(3, dtype=np.uint8), (24, 10)))
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    image.save(path)


@pytest.mark.parametrize(
    ("spoil", "classes", "message"),
    [
        (_palette, "", "a binary palette has two; masks are binary as long as there is no classes.txt"),
        (_colours, "a\nb\nc\n", "masks of several classes hold one index a pixel (grey or palette PNG), not colours"),
        (lambda path: _mask(path, (0, 7)), "a\nb\nc\n", "class indices 7, and classes.txt names 3 classes, so 0 to 2"),
    ],
)
def test_check_explains_masks_that_do_not_fit(tmp_path, capsys, spoil, classes, message):
    _write(tmp_path, values=(0, 1, 2) if classes else (0, 255))
    if classes:
        (tmp_path / "classes.txt").write_text(classes)
    spoil(tmp_path / "masks" / f"{STEMS[0]}_mask.png")
    assert main(["check", f"mine={tmp_path}", "--workers", "1"]) == 1
    assert message in capsys.readouterr().out


def _painted(path: Path, colour: tuple[int, ...]) -> None:
    pixels = np.zeros((24, 30, 3), dtype=np.uint8)
    pixels[8:20, 4:20] = colour
    Image.fromarray(pixels).save(path)


def test_check_says_that_all_masks_are_dark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        _mask(path.with_suffix(".jpg"), (0, 20))
        path.unlink()
    assert main(["check", f"mine={tmp_path}", "--workers", "1"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"their brightest value is \d\d, and what is looked for is above 127: save masks as PNG", told)


def test_check_warns_of_colours_that_are_one_a_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path)
    masks = sorted((tmp_path / "masks").iterdir())
    for colours, told in (
        (((255, 0, 0), (0, 255, 0), (0, 0, 255)), True),
        (((255, 0, 0), (128, 0, 0), (255, 0, 20), (255, 255, 255)), False),
    ):
        for number, path in enumerate(masks):
            _painted(path, colours[number % len(colours)])
        assert main(["check", f"mine={tmp_path}", "--workers", "1"]) == 0
        assert ("painted in " in (out := capsys.readouterr().out)) is told
        assert ("(255, 0, 0)" in out and "several classes? save them as indices" in " ".join(out.split())) is told


def test_check_warns_of_classes_that_are_one_a_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path, values=(0, 255))
    for number, path in enumerate(sorted((tmp_path / "masks").iterdir())):
        image = Image.fromarray(np.tile(np.array([0, 1 + number % 3], dtype=np.uint8), (24, 15)))
        image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
        image.save(path)
    assert main(["check", f"mine={tmp_path}", "--workers", "1"]) == 0
    assert "each mask holds one of 1-3: several classes? name them in classes.txt" in capsys.readouterr().out


def test_check_explains_inverted_masks_and_passes_good_ones(tmp_path: Path, capsys, monkeypatch) -> None:
    _write(tmp_path / "good")
    _write(tmp_path / "inverted", values=(255, 0))
    assert main(["check", f"mine={tmp_path / 'good'}", "--workers", "1", "--group", r"(.+)_r\d"]) == 0
    assert "groups of (.+)_r" in capsys.readouterr().out
    assert main(["check", f"mine={tmp_path / 'inverted'}", "--workers", "1"]) == 1
    assert "inverted? What is looked for must be white" in capsys.readouterr().out
    (settings := tmp_path / "harness.toml").write_text(f'[datasets]\nmine = "{tmp_path / "good"}"\n')
    monkeypatch.setenv("SAM_PEFT_SETTINGS", str(settings))
    assert main(["check", "mine", "--workers", "1"]) == 0
    assert main(["check", "mine", "--data", str(tmp_path / "inverted"), "--workers", "1"]) == 1, "before what is set"


def test_a_group_rule_that_never_ends_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "GROUP_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGALRM)
    pair = Pair(stem="a" * 40 + "b", image=tmp_path, mask=tmp_path)
    benchmark = own_benchmark("mine", ("ground", "tree"))(DataOptions(group="(a+)+$"))
    with pytest.raises(DatasetError, match="takes more than"):
        benchmark.group(pair)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(("shared", "code"), [(False, 0), (True, 1)])
def test_check_names_groups_that_lie_in_two_given_splits(tmp_path, capsys, shared: bool, code: int) -> None:
    for number, (split, stems) in enumerate((("train", STEMS[:15]), ("val", STEMS[15:18]), ("test", STEMS[18:]))):
        for index, stem in enumerate(stems):
            name = stem.replace("site7", "site0") if shared else stem
            _image(tmp_path / split / "images" / f"{name}{split}.jpg", 100 * number + index)
            _mask(tmp_path / split / "masks" / f"{name}{split}.png")
    assert main(["check", f"mine={tmp_path}", "--workers", "1", "--group", r"(site\d+)_"]) == code
    told = capsys.readouterr().out
    if shared:
        assert "1 of 7 groups have images in several splits" in told
        assert "site0: train train/images/site0_r0c0train.jpg" in told
    else:
        assert "8 groups, each in one split" in told


@pytest.mark.parametrize("classes", ["", "background\nlesion\n"])
def test_an_area_to_ignore_is_never_the_object(tmp_path: Path, classes: str) -> None:
    """Grey masks of 0, 1 and 255, as PASCAL VOC's with one class: 255 above half was the object, and 1 was not."""
    _write(tmp_path, values=(0, 1, 255))
    if classes:
        (tmp_path / "classes.txt").write_text(classes)
        _mask(tmp_path / "masks" / f"{STEMS[0]}_mask.png", (0, 255))  # an image with nothing but an area to ignore
    made, root = own_folder("mine", tmp_path)
    benchmark = made(DataOptions())
    for path in sorted((root / "masks").iterdir()):
        stored = np.asarray(Image.open(path))
        assert np.array_equal(benchmark.decode_mask(path), stored), path  # type: ignore[attr-defined]


def test_a_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    for split, stems in (("train", STEMS[:16]), ("val", STEMS[16:20]), ("test", STEMS[15:])):
        rows = [f"images/{stem}.jpg,masks/{stem}_mask.png" for stem in stems]
        (tmp_path / f"{split}.csv").write_text("\n".join(["image,label", *rows]))
    made, root = own_folder("mine", tmp_path)
    with pytest.raises(DatasetError, match=rf"{STEMS[15]}.jpg is in train and in test; take it out of one of them"):
        made(DataOptions()).splits(root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kvazir=DIR"], "did you mean 'kvasir'"),
        (["mine"], "mine is no benchmark"),
        (["mine=/no/such/folder"], "no folder /no/such/folder for mine"),
        (["mine=EMPTY"], "is no data set that mine could be; give a folder with images/ and masks/"),
        (["mine=ODD"], "images/ and masks/ are there, but no names pair (images/img0.png, masks/annot_0.png); rename"),
        (["../x=DIR"], "../x is a folder without a name"),
        (["kvasir", "--group", "x"], "--group is for data of your own"),
        (["mine=TWO"], "holds several data sets"),
        (["mine=DIR", "--group", "("], "is no regular expression"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments: list[str], message: str) -> None:
    _write(tmp_path / "DIR")
    _write(tmp_path / "TWO" / "a")
    _write(tmp_path / "TWO" / "b")
    (tmp_path / "EMPTY").mkdir()
    for number in range(3):
        _image(tmp_path / "ODD" / "images" / f"img{number}.png", number)
        _mask(tmp_path / "ODD" / "masks" / f"annot_{number}.png")
    words = [word.replace("=DIR", f"={tmp_path}/DIR").replace("=TWO", f"={tmp_path}/TWO") for word in arguments]
    words = [word.replace("=EMPTY", f"={tmp_path}/EMPTY").replace("=ODD", f"={tmp_path}/ODD") for word in words]
    assert main(["check", *words, "--workers", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_names_of_nearly_a_benchmark_are_free_where_only_numbers_differ() -> None:
    assert dataset_name("ISIC-2018") == "isic_2018"
    assert dataset_name("Kvasir") == "kvasir"
    assert dataset_name("tiles") == "tiles"
