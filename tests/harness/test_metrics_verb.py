"""``sam-peft metrics`` on folders of predictions."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.cli.metrics import main
from harness.datasets.base import DatasetError
from harness.evaluation import folders as folders_module
from harness.evaluation.conventions import CLASSES, METRICS, Conventions
from harness.evaluation.folders import FolderScoring, _read_array, pair_predictions, score_folders
from harness.evaluation.scorer import SplitScorer
from harness.system.errors import UsageError
from tests.harness.evaluation.pairs import blob, soft
from tests.signals import as_in_a_terminal
from tests.values import on_linux

COUNT = 11


@pytest.fixture
def folders(tmp_path):
    """Predictions and masks of eleven images, masks with a suffix and in another format."""
    predictions, masks = tmp_path / "predictions", tmp_path / "masks"
    predictions.mkdir()
    masks.mkdir()
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        mask = blob(rng, 60, 40 + index)
        Image.fromarray(soft(rng, mask)).save(predictions / f"Image{index}.png")
        Image.fromarray(mask * np.uint8(255)).save(masks / f"image{index}_mask.tif")
    (masks / ".DS_Store").write_bytes(b"x")
    return predictions, masks


def placed(folder, files):
    """Folders ``p`` and ``g`` with these arrays and images, by their names."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, content)
        else:
            (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path)
    return folder / "p", folder / "g"


def scores_of(capsys, predictions, masks, *more):
    assert main(["--pred", str(predictions), "--gt", str(masks), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def expected(folders, metrics=METRICS, conventions=None):
    predictions, masks = folders
    scorer = SplitScorer(metrics, conventions=conventions or Conventions())
    for index in range(COUNT):
        prediction = np.asarray(Image.open(predictions / f"Image{index}.png")) / 255
        mask = (np.asarray(Image.open(masks / f"image{index}_mask.tif")) > 127).astype(np.uint8)
        scorer.insert(f"Image{index}", scorer.measure(prediction, mask))
    return scorer


@pytest.mark.parametrize("workers", ["1", "2", "0"])
def test_scores_equal_the_scorers_on_any_number_of_workers(capsys, folders, workers):
    scores = scores_of(capsys, *folders, "--metrics", "all", "--workers", workers)
    assert scores == {"images": COUNT, "scores": expected(folders).summary()}


def test_the_table_names_metrics_and_images(capsys, folders):
    predictions, masks = folders
    assert main(["--pred", str(predictions), "--gt", str(masks), "--metrics", "iou,e-max"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("|")[1:3] == [" metric   ", " 11 images   "]
    assert lines[2].split()[1] == "iou"
    assert lines[3].split()[1] == "e_max"
    assert float(lines[2].split("|")[2]) == pytest.approx(expected(folders).summary()["iou"], abs=5e-5)


@pytest.mark.parametrize("theirs", [b"name,grade\nA,1\n", b"conventions of 1864\n", b"II*\0\xff\xfe"])
def test_per_image_scores_write_over_their_own_kind_alone(capsys, folders, tmp_path, theirs):
    out = tmp_path / "out.csv"
    out.write_bytes(theirs)
    arguments = ["--pred", str(folders[0]), "--gt", str(folders[1]), "--metrics", "iou", "--per-image", str(out)]
    assert main(arguments) == 2
    assert "holds something else" in capsys.readouterr().err
    assert out.read_bytes() == theirs
    out.write_text("")
    for _ in range(2):
        assert main(arguments) == 0
    assert out.read_text().startswith("conventions,stem,iou\n")


@on_linux
@pytest.mark.parametrize("ending", [".npy", ".png"])
def test_a_prediction_whose_name_is_no_text_is_one_line(capsys, folders, tmp_path, ending):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / os.fsdecode(b"a\xff" + ending.encode())).write_bytes(b"")
    assert main(["--pred", str(tmp_path / "p"), "--gt", str(folders[1])]) == 2
    assert "rename it" in capsys.readouterr().err


def test_per_image_scores_are_written(capsys, folders, tmp_path):
    out = tmp_path / "images.csv"
    scores_of(capsys, *folders, "--metrics", "iou,mae", "--per-image", str(out))
    rows = list(csv.DictReader(out.open()))
    images = expected(folders, metrics=("iou", "mae")).images()
    assert {row["stem"]: {"iou": float(row["iou"]), "mae": float(row["mae"])} for row in rows} == images


@pytest.mark.parametrize("place", ["/proc/x.csv", "{here}", "{here}/file/x.csv", "/no/such/folder/x.csv"])
def test_where_images_scores_cannot_be_written_nothing_is_scored(capsys, folders, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(folders_module, "score_folders", lambda *_, **__: pytest.fail("scored first"))
    path = place.format(here=tmp_path)
    assert main(["--pred", str(folders[0]), "--gt", str(folders[1]), "--per-image", path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(Path(path).parent) in line


def test_the_folder_of_images_scores_is_not_touched_before(folders, tmp_path):
    out, earlier = tmp_path / "kept.csv", "conventions,stem,iou\n"
    out.write_text(earlier)
    assert main(["--pred", "/no/such", "--gt", str(folders[1]), "--per-image", str(out)]) == 2
    assert out.read_text() == earlier


def test_conventions_print_the_same_predictions_under_each(capsys, folders):
    scores = scores_of(capsys, *folders, "--conventions", "--input-size", "96", "--metrics", "iou,weighted_f,mae")[
        "scores"
    ]
    plain = expected(folders).summary()
    assert scores["as given"] == {metric: plain[metric] for metric in ("iou", "weighted_f", "mae")}
    released = expected(folders, conventions=Conventions(weighted_f_beta2=0.3)).summary()
    assert scores["weighted_f_beta2=0.3"]["weighted_f"] == released["weighted_f"]
    accumulated = expected(folders, conventions=Conventions(overlap="accumulated")).summary()
    assert scores["overlap=accumulated"]["iou"] == accumulated["iou"]
    unstretched = expected(folders, conventions=Conventions(min_max=False)).summary()
    assert scores["min_max=false"]["mae"] == unstretched["mae"]
    assert scores["resolution=input"]["iou"] != plain["iou"]
    assert scores["as released"]["iou"] == scores["resolution=input"]["iou"]
    assert scores["as released"]["weighted_f"] != scores["resolution=input"]["weighted_f"]
    assert scores["empty=0"]["iou"] == plain["iou"]  # no mask is empty here


def test_the_empty_rule_shows_where_masks_are_empty(capsys, tmp_path):
    both = placed(tmp_path, dict.fromkeys(("p/a.png", "g/a.png"), np.zeros((20, 20), dtype=np.uint8)))
    scores = scores_of(capsys, *both, "--conventions", "--metrics", "iou", "--input-size", "16")["scores"]
    assert (scores["as given"]["iou"], scores["empty=0"]["iou"]) == (1.0, 0.0)
    assert main(["--pred", str(both[0]), "--gt", str(both[1]), "--conventions", "--metrics", "iou"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split("|")[1:3] == [" as given             ", " 1.0000 "]


@pytest.mark.parametrize(("given", "message"), [(1, "for b.png; --partial"), (3, "for b.png and 2 more; --partial")])
def test_how_many_files_have_no_partner_is_told(tmp_path, given, message):
    names = ["g/a.png", *(f"p/{name}.png" for name in "abcd"[: 1 + given])]
    with pytest.raises(UsageError, match=message):
        pair_predictions(*placed(tmp_path, dict.fromkeys(names, Image.new("L", (4, 4)))))


def test_an_accent_may_be_a_character_of_its_own_in_one_of_two_names(tmp_path):
    names = ("p/a\u0308.png", "g/\u00e4_mask.png")
    (pair,) = pair_predictions(*placed(tmp_path, dict.fromkeys(names, Image.new("L", (4, 4)))))
    assert pair.mask.name == "\u00e4_mask.png"


def test_a_convention_is_set_by_name(capsys, folders):
    scores = scores_of(capsys, *folders, "--set", "threshold=0.2", "--set", "min_max=false", "--metrics", "iou,mae")
    rules = Conventions(threshold=0.2, min_max=False)
    assert scores["scores"] == expected(folders, metrics=("iou", "mae"), conventions=rules).summary()


@pytest.mark.parametrize(
    ("shape", "accepted"), [((60, 45), True), ((30, 22), True), ((30, 23), True), ((45, 60), False), ((64, 64), False)]
)
def test_another_aspect_ratio_is_refused_instead_of_stretched(tmp_path, capsys, shape, accepted):
    levels = {name: np.full(size, 255, dtype=np.uint8) for name, size in (("p/a.png", shape), ("g/a.png", (60, 45)))}
    for array in levels.values():
        array[len(array) // 2 :] = 0
    pred, gt = placed(tmp_path, levels)
    words = ["--pred", str(pred), "--gt", str(gt), "--workers", "1", "--metrics", "iou"]
    assert main(words) == (0 if accepted else 2)
    assert ("another aspect ratio" in capsys.readouterr().err) != accepted
    assert main([*words, "--stretched"]) == 0


def test_stretched_predictions_score_as_the_scorer_scores_a_networks_output(tmp_path, capsys):
    rng = np.random.default_rng(0)
    scores, mask = rng.random((32, 32), dtype=np.float32), (rng.random((60, 45)) > 0.5).astype(np.uint8)
    both = placed(tmp_path, {"p/a.npy": scores, "g/a.png": mask * np.uint8(255)})
    expected = SplitScorer(["iou", "mae"]).measure(scores, mask).values
    assert scores_of(capsys, *both, "--stretched", "--workers", "1", "--metrics", "iou,mae")["scores"] == expected


@pytest.mark.parametrize("kind", ["npy", "sixteen", "one-bit", "palette"])
def test_other_encodings_of_a_prediction_are_read(capsys, tmp_path, kind):
    rng = np.random.default_rng(1)
    mask = blob(rng, 30, 30)
    levels = soft(rng, mask)
    kinds: dict[str, tuple[str, Any, Any]] = {
        "npy": ("a.npy", (levels / 255).astype(np.float32), (levels / 255).astype(np.float32)),
        "sixteen": ("a.png", levels.astype(np.uint16) * 257, levels / 255),
        "one-bit": ("a.png", levels > 100, (levels > 100).astype(float)),
        "palette": ("a.png", Image.fromarray(levels).convert("P"), levels / 255),
    }
    name, stored, values = kinds[kind]
    both = placed(tmp_path, {f"p/{name}": stored, "g/a.png": mask * np.uint8(255)})
    expected = SplitScorer(["mae", "iou"]).measure(values, mask).values
    assert scores_of(capsys, *both, "--metrics", "mae,iou")["scores"] == pytest.approx(expected, abs=1e-9)


def test_a_coloured_palette_is_foreground_and_not_a_dark_picture(capsys, tmp_path):
    mask = blob(np.random.default_rng(1), 30, 30)
    picture = Image.fromarray(mask)
    picture.putpalette([0, 0, 0, 128, 0, 0])
    both = placed(tmp_path, {"p/a.png": picture, "g/a.png": mask * np.uint8(255)})
    assert scores_of(capsys, *both, "--metrics", "iou")["scores"] == {"iou": 1.0}


def test_a_prediction_is_turned_upright_as_its_mask_is(capsys, tmp_path):
    white = blob(np.random.default_rng(1), 30, 20) * np.uint8(255)
    both = placed(tmp_path, {"p/a.png": white, "g/a.png": white})
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(white).transpose(Image.Transpose.ROTATE_90).save(both[0] / "a.png", exif=exif)
    assert scores_of(capsys, *both, "--metrics", "iou")["scores"] == {"iou": 1.0}


@pytest.mark.parametrize("name", ["a.gif", "a.npy", "a.png"])
def test_masks_are_read_as_those_of_a_data_set_are(capsys, tmp_path, name):
    mask = blob(np.random.default_rng(1), 30, 30)
    painted = mask[..., None] * np.array([128, 0, 0], np.uint8) if name == "a.png" else mask * np.uint8(255)
    both = placed(tmp_path, {"p/a.png": mask * np.uint8(255), f"g/{name}": painted})
    assert scores_of(capsys, *both, "--metrics", "iou")["scores"] == {"iou": 1.0}


def test_an_array_beside_a_mask_of_its_name_is_no_second_mask(capsys, tmp_path):
    mask = blob(np.random.default_rng(1), 30, 30)
    white = mask * np.uint8(255)
    both = placed(tmp_path, {"p/a.png": white, "g/a.png": white, "g/a.npy": 255 - white})
    assert scores_of(capsys, *both, "--metrics", "iou")["scores"] == {"iou": 1.0}


@pytest.mark.parametrize(("level", "full", "kind"), [(1, 255, np.uint8), (255, 65535, np.uint16)])
def test_masks_that_are_no_probabilities_are_refused_where_all_are_such(capsys, tmp_path, level, full, kind):
    mask = blob(np.random.default_rng(1), 30, 30)
    both = placed(tmp_path, dict.fromkeys(("g/a.png", "g/b.png"), mask * np.uint8(255)))
    placed(tmp_path, dict.fromkeys(("p/a.png", "p/b.png"), mask.astype(kind) * kind(level)))
    words = ["--pred", str(both[0]), "--gt", str(both[1]), "--workers", "1"]
    assert main(words) == 2
    assert f"save {full} in its place" in capsys.readouterr().err
    placed(tmp_path, {"p/b.png": mask.astype(kind) * kind(full)})
    assert main(words) == 0  # one map may be dark


def test_labels_of_several_classes_are_not_read_from_jpeg(capsys, tmp_path):
    pred, gt = placed(tmp_path, dict.fromkeys(("p/a.jpg", "g/a.png"), np.full((16, 16), 3, np.uint8)))
    assert main(["--pred", str(pred), "--gt", str(gt), "--num-classes", "8", "--workers", "1"]) == 2
    assert "a.jpg is a JPEG file: class indices do not survive" in capsys.readouterr().err


def test_class_indices_with_ignored_pixels_are_scored(capsys, tmp_path):
    rng = np.random.default_rng(2)
    scorer = SplitScorer(CLASSES, task="multiclass", num_classes=4)
    for index, (ending, kind) in enumerate((("png", np.uint8), ("png", np.uint16), ("npy", np.uint64))):
        labels, mask = (rng.integers(0, 4, (30, 20)).astype(np.uint8) for _ in range(2))
        mask[:5] = 255
        scorer.insert(str(index), scorer.measure(labels, mask))
        labels[:5] = 255  # as some write what they were told to ignore
        both = placed(tmp_path, {f"p/{index}.{ending}": labels.astype(kind), f"g/{index}.png": mask})
    assert scores_of(capsys, *both, "--num-classes", "4")["scores"] == scorer.summary()


def test_partial_scores_what_both_folders_have(capsys, folders):
    predictions, masks = folders
    (predictions / "Image3.png").unlink()
    (masks / "image4_mask.tif").unlink()
    assert scores_of(capsys, predictions, masks, "--partial", "--metrics", "iou")["images"] == COUNT - 2


def instead(write):
    """Another file in place of the prediction Image5."""

    def spoil(predictions, masks):
        (predictions / "Image5.png").unlink()
        write(predictions / "Image5.npy")

    return spoil


def saved(array):
    return instead(lambda path: np.save(path, array))


def header(shape, dtype="<f8"):
    """A header that claims more than the file holds."""

    def write(path):
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})

    return instead(write)


def archive(path):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((60, 45)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p, _: (p / "Image5.png").write_bytes(b"not a picture"), "Image5.png is unreadable"),
        (lambda p, _: (p / "Image5.png").unlink(), "no prediction for image5_mask.tif; --partial"),
        (lambda _, m: (m / "image5_mask.tif").unlink(), "no mask for Image5.png; --partial"),
        (lambda p, _: shutil.copy(p / "Image5.png", p / "image5.bmp"), "two files of one name"),
        (saved(np.full((60, 45), 3.5)), "Image5.npy against image5_mask.tif: probabilities must be"),
        (saved(np.full((60, 45), np.nan)), "probabilities must be finite"),
        (saved(np.ones((60, 45), dtype=np.int64)), "Image5.npy holds int64"),
        (saved(np.zeros((60, 45), complex)), "Image5.npy holds complex128; predictions are floats in [0, 1]"),
        (saved(np.zeros((0, 0))), "Image5.npy has the shape (0, 0)"),
        (saved(np.array([[{}]], dtype=object)), "Image5.npy is unreadable"),
        (instead(lambda path: path.write_bytes(b"\x93NUMPY\x01\x00")), "Image5.npy is unreadable"),
        (instead(lambda path: path.write_bytes(b"")), "Image5.npy is unreadable (No data left in file)"),
        (instead(archive), "Image5.npy holds several arrays"),
        (instead(Path.mkdir), "Image5.npy is a folder, not a file"),
        (instead(os.mkfifo), "Image5.npy is a pipe or a device"),
        (header((10**9, 10**6)), "Image5.npy is unreadable"),
        (["--metrics", "smeasure"], "unknown metric 'smeasure' (did you mean 's_measure'?)"),
        (["--metrics", ","], "names no metric"),
        (["--set", "beta=1"], "--set: unknown key 'beta'"),
        (["--set", "empty"], "--set 'empty' is not KEY=VALUE"),
        (["--set", "bogus"], "--set empty=1.0"),
        (["--set", "min_max=maybe"], "must be true or false"),
        (["--set", "min-max=false", "--set", "min_max=true"], "given twice"),
        (["--set", "empty=none"], "--set: empty='none' must be a valid number"),
        (["--set", "threshold=nan"], "--set: threshold=nan must lie in [0, 1]"),
        (["--set", "weighted_f_beta2=0"], "weighted_f_beta2=0 must be above 0"),
        (["--num-classes", "1"], "--num-classes is 2 to 255"),
        (["--input-size", "99999999"], "--input-size 1 to 16384"),
        (["--num-classes", "3"], "labels must be integers from 0 to 2"),
        (["--pred", "/no/such/folder"], "/no/such/folder is not a folder"),
    ],
)
def test_bad_input_is_one_line(capsys, folders, spoil, message):
    """Folders that are spoilt, or wrong words after good ones."""
    words = ["--pred", str(folders[0]), "--gt", str(folders[1]), "--workers", "1"]
    if callable(spoil):
        spoil(*folders)
    else:
        words += spoil
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((60, 45), complex), "holds complex128; predictions are integer labels (H, W) or float scores"),
        (np.zeros((60, 45)), "labels must be integers from 0 to 2"),
        (np.full((3, 60, 45), np.inf), "scores must be finite"),
        (np.full((60, 45), 256, np.uint16), "labels must be integers from 0 to 2"),  # no byte, in which it were 0
    ],
)
@pytest.mark.parametrize("resolution", ["native", "input"])
def test_bad_arrays_of_several_classes_are_one_line(capsys, tmp_path, array, message, resolution):
    name = "p/a.png" if array.dtype == np.uint16 else "p/a.npy"
    placed(tmp_path, {name: array, "g/a.png": np.eye(60, 45, dtype=np.uint8)})
    options = ["--num-classes", "3", "--set", f"resolution={resolution}", "--workers", "1"]
    options += ["--input-size", "30"] if resolution == "input" else []
    assert main(["--pred", str(tmp_path / "p"), "--gt", str(tmp_path / "g"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_failure_in_a_worker_process_is_one_line_too(capsys, folders):
    (folders[0] / "Image5.png").write_bytes(b"not a picture")
    assert main(["--pred", str(folders[0]), "--gt", str(folders[1]), "--workers", "2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_imports_neither_torch_nor_scipy():
    code = (
        "import sys, harness.cli.metrics as m; m.parser().format_help(); print({'torch', 'scipy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


class Killed(FolderScoring):
    """What the kernel does to a process that needs too much memory."""

    def __call__(self, pair):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_and_not_a_wait(folders):
    scoring = Killed(scorers={"": SplitScorer(["iou"])})
    with pytest.raises(UsageError, match="killed, most likely for memory"):
        score_folders(pair_predictions(*folders), scoring, workers=2)


@on_linux
def test_ctrl_c_is_one_line(folders, tmp_path):
    predictions, masks = folders
    for index in range(200):
        shutil.copy(predictions / "Image0.png", predictions / f"more{index}.png")
        shutil.copy(masks / "image0_mask.tif", masks / f"more{index}.tif")
    command = [sys.executable, "-m", "harness", "metrics", "--pred", predictions, "--gt", masks, "--metrics", "all"]
    job = subprocess.Popen(
        [*map(str, command), "--workers", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=as_in_a_terminal,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(job.pid, signal.SIGINT)  # a terminal sends it to all processes of the job
    error = job.communicate(timeout=60)[1]
    assert (job.returncode, error) == (130, "interrupted: scoring; give the same command again\n")


@pytest.mark.parametrize(("low", "high", "fits"), [(0, 255, True), (-1, 255, False), (0, 256, False)])
def test_labels_are_the_numbers_of_a_byte(tmp_path, low, high, fits):
    np.save(tmp_path / "a.npy", np.array([[low, high]]))
    if fits:
        assert _read_array(tmp_path / "a.npy", task="multiclass").tolist() == [[low, high]]
    else:
        with pytest.raises(DatasetError, match=f"labels from {low} to {high}"):
            _read_array(tmp_path / "a.npy", task="multiclass")
