"""``sam-peft data score`` on folders of predictions."""

from __future__ import annotations

import json
import shutil
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.cli.data import main
from harness.datasets.base import DatasetError
from harness.evaluation.conventions import CLASSES, OF_TASK, Conventions
from harness.evaluation.score_folders import pair_predictions, score_folders
from harness.evaluation.scorer import SplitScorer
from harness.system.errors import UsageError
from tests.harness.evaluation.pairs import blob, soft

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
    assert main(["score", str(predictions), str(masks), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def values_of(capsys, both, metrics):
    """Of a split, in whose JSON all metrics are."""
    scores = scores_of(capsys, *both)["scores"]
    return {name: scores[name] for name in metrics}


def expected(folders, metrics=OF_TASK["binary"], conventions=None):
    predictions, masks = folders
    scorer = SplitScorer(metrics, conventions=conventions or Conventions())
    for index in range(COUNT):
        prediction = np.asarray(Image.open(predictions / f"Image{index}.png")) / 255
        mask = (np.asarray(Image.open(masks / f"image{index}_mask.tif")) > 127).astype(np.uint8)
        scorer.insert(f"Image{index}", scorer.measure(prediction, mask))
    return scorer


def test_scores_are_the_scorers_in_all_and_by_image(capsys, folders):
    scores = scores_of(capsys, *folders)
    scorer = expected(folders)
    assert scores == {"images": COUNT, "scores": scorer.summary(), "per_image": scorer.images()}


def test_a_benchmark_gives_its_way_to_read_masks(capsys, folders):
    """Any level above 0 is shadow on SBU."""
    for path in folders[1].glob("*.tif"):
        Image.fromarray((np.asarray(Image.open(path)) > 127) * np.uint8(60)).save(path)
    assert scores_of(capsys, *folders, "--benchmark", "sbu")["scores"]["ber"] < 0.5


def test_names_may_differ_in_what_all_of_a_folder_share_as_in_data_check(tmp_path):
    names = ("p/pred_7.png", "p/pred_12.png", "g/7_truth.png", "g/12_truth.png")
    pairs = pair_predictions(*placed(tmp_path, dict.fromkeys(names, Image.new("L", (4, 4)))))
    assert {(pair.image.stem, pair.mask.stem) for pair in pairs} == {("pred_7", "7_truth"), ("pred_12", "12_truth")}
    (tmp_path / "more").mkdir()
    (tmp_path / "less").mkdir()
    with pytest.raises(DatasetError, match=r"pred_9\.png has no partner, and the other 2"):
        pair_predictions(*placed(tmp_path / "more", dict.fromkeys((*names, "p/pred_9.png"), Image.new("L", (4, 4)))))
    with pytest.raises(UsageError, match="paired by name"):
        pair_predictions(*placed(tmp_path / "less", dict.fromkeys((*names[1:], "p/x.png"), Image.new("L", (4, 4)))))


def test_a_convention_is_set_by_name(capsys, folders):
    scores = scores_of(capsys, *folders, "--set", "threshold=0.2", "--set", "min_max=false")
    rules = Conventions(threshold=0.2, min_max=False)
    assert scores["scores"] == expected(folders, conventions=rules).summary()


@pytest.mark.parametrize(
    ("shape", "accepted"), [((60, 45), True), ((30, 22), True), ((30, 23), True), ((45, 60), False), ((64, 64), False)]
)
def test_another_aspect_ratio_is_refused_instead_of_stretched(tmp_path, capsys, shape, accepted):
    levels = {name: np.full(size, 255, dtype=np.uint8) for name, size in (("p/a.png", shape), ("g/a.png", (60, 45)))}
    for array in levels.values():
        array[len(array) // 2 :] = 0
    pred, gt = placed(tmp_path, levels)
    assert main(["score", str(pred), str(gt)]) == (0 if accepted else 2)
    assert ("another aspect ratio" in capsys.readouterr().err) != accepted


@pytest.mark.parametrize("kind", ["npy", "sixteen", "one-bit", "palette", "gif"])
def test_other_encodings_of_a_prediction_are_read(capsys, tmp_path, kind):
    rng = np.random.default_rng(1)
    mask = blob(rng, 30, 30)
    levels = soft(rng, mask)
    kinds: dict[str, tuple[str, Any, Any]] = {
        "npy": ("a.npy", (levels / 255).astype(np.float32), (levels / 255).astype(np.float32)),
        "sixteen": ("a.png", levels.astype(np.uint16) * 257, levels / 255),
        "one-bit": ("a.png", levels > 100, (levels > 100).astype(float)),
        "palette": ("a.png", Image.fromarray(levels).convert("P"), levels / 255),
        "gif": ("a.gif", Image.fromarray(levels), levels / 255),
    }
    name, stored, values = kinds[kind]
    both = placed(tmp_path, {f"p/{name}": stored, "g/a.png": mask * np.uint8(255)})
    expected = SplitScorer(["mae", "iou"]).measure(values, mask).values
    assert values_of(capsys, both, ("mae", "iou")) == pytest.approx(expected, abs=1e-9)


def test_a_prediction_is_turned_upright_as_its_mask_is(capsys, tmp_path):
    white = blob(np.random.default_rng(1), 30, 20) * np.uint8(255)
    both = placed(tmp_path, {"p/a.png": white, "g/a.png": white})
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(white).transpose(Image.Transpose.ROTATE_90).save(both[0] / "a.png", exif=exif)
    assert values_of(capsys, both, ["iou"]) == {"iou": 1.0}


DISC = blob(np.random.default_rng(1), 30, 30)
WHITE = DISC * np.uint8(255)
LINE = np.eye(9, dtype=np.uint8)
DARK_RED = Image.fromarray(DISC)
DARK_RED.putpalette([0, 0, 0, 128, 0, 0])
SCORED: dict[str, tuple[dict[str, Any], float]] = {
    "a coloured palette is foreground, and not a dark picture": ({"p/a.png": DARK_RED, "g/a.png": WHITE}, 1.0),
    "an empty mask is not a dark picture": ({"p/a.png": WHITE, "p/b.png": 0 * WHITE, "g/a.png": WHITE, "g/b.png": WHITE}, 0.5),
    "masks may be GIFs": ({"p/a.png": WHITE, "g/a.gif": WHITE}, 1.0),
    "masks may be painted": ({"p/a.png": WHITE, "g/a.png": DISC[..., None] * np.array([128, 0, 0], np.uint8)}, 1.0),
    "masks of 0 and 1 ignore 255": ({"p/a.png": LINE * 255, "g/a.png": np.concatenate([LINE[:3] * 0 + 255, LINE[3:]])}, 1.0),
    "arrays may hold small probabilities": ({"p/a.npy": np.full((9, 9), 0.002, np.float32), "g/a.png": LINE * 255}, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCORED)
def test_files_are_read_as_those_of_a_data_set_are(capsys, tmp_path, kind):
    files, iou = SCORED[kind]
    assert values_of(capsys, placed(tmp_path, files), ["iou"]) == {"iou": iou}


@pytest.mark.parametrize(("level", "full", "kind"), [(1, 255, np.uint8), (255, 65535, np.uint16), (100, 255, np.uint8)])
def test_masks_of_0_and_1_are_refused_where_all_are_such(says, tmp_path, level, full, kind):
    mask = blob(np.random.default_rng(1), 30, 30)
    both = placed(tmp_path, dict.fromkeys(("g/a.png", "g/b.png"), mask * np.uint8(255)))
    placed(tmp_path, dict.fromkeys(("p/a.png", "p/b.png"), mask.astype(kind) * kind(level)))
    words = ["score", *both]
    message = says(main, *words, code=2)
    assert "in its place" in message
    assert str(full) in message
    placed(tmp_path, {"p/b.png": mask.astype(kind) * kind(full)})
    assert f"grey level {round(255 * level / full)} of 255, and 1 exceed it" in says(main, *words, code=2)
    soft = mask.astype(kind) * kind(full)
    soft[0] = full // 3
    placed(tmp_path, {"p/b.png": soft})
    says(main, *words)  # one map of probabilities may be dark


@pytest.mark.parametrize(
    ("values", "classes", "words"),
    [
        ([(1,), (255,), (255,)], 2, "1 masks hold class indices, and 2 hold 0 and 255"),
        ([(1, 255), (255,)], 2, "1 masks hold class indices, and 1 hold 0 and 255"),
        ([(1, 2), (2,), (255,)], 3, "2 masks hold class indices, and 1 hold 0 and 255"),
        ([(1, 2, 255), (2,), (255,)], 3, ""),  # which is to be ignored
        ([(1,), (1, 255), ()], 2, ""),
        ([(255,), (), (255,)], 2, ""),
    ],
)
def test_masks_of_two_encodings_are_refused_with_their_counts(capsys, tmp_path, values, classes, words):
    for number, held in enumerate(values):
        mask = np.zeros((20, 20), np.uint8)
        mask[:6].reshape(-1)[: 20 * len(held)] = np.repeat(np.array(held, np.uint8), 20)
        prediction = np.eye(20, dtype=np.uint8) * np.uint8(255 if classes == 2 else 2)
        both = placed(tmp_path, {f"p/{number}.png": prediction, f"g/{number}.png": mask})
    code = main(["score", *map(str, both), "--num-classes", str(classes)])
    assert (code, words in capsys.readouterr().err) == (2 if words else 0, True)


def test_class_indices_with_ignored_pixels_are_scored(capsys, tmp_path):
    rng = np.random.default_rng(2)
    scorer = SplitScorer(CLASSES, task="multiclass", num_classes=4)
    for index, (ending, kind) in enumerate((("png", np.uint8), ("png", np.uint16))):
        labels, mask = (rng.integers(0, 4, (30, 20)).astype(np.uint8) for _ in range(2))
        mask[:5] = 255
        scorer.insert(str(index), scorer.measure(labels, mask))
        labels[:5] = 255  # as some write what is ignored
        both = placed(tmp_path, {f"p/{index}.{ending}": labels.astype(kind), f"g/{index}.png": mask})
    assert scores_of(capsys, *both, "--num-classes", "4")["scores"] == scorer.summary()


def instead(write):
    """Another file in place of the prediction Image5."""

    def spoil(predictions, masks):
        (predictions / "Image5.png").unlink()
        write(predictions / "Image5.npy")

    return spoil


def saved(array):
    return instead(lambda path: np.save(path, array))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p, _: (p / "Image5.png").write_bytes(b"not a picture"), "Image5.png is unreadable"),
        (lambda p, _: (p / "Image5.png").unlink(), "no partner for image5_mask.tif; complete it"),
        (lambda p, _: shutil.copy(p / "Image5.png", p / "image5.bmp"), "have one name"),
        (saved(np.full((60, 45), 3.5)), "Image5.npy against image5_mask.tif: probabilities must be"),
        (saved(np.ones((60, 45), dtype=np.int64)), "Image5.npy is not an array of floats"),
        (saved(np.array([[{}]], dtype=object)), "Image5.npy is unreadable"),
        (instead(lambda path: path.write_bytes(b"")), "Image5.npy is unreadable (No data left in file)"),
        (["--set", "weighted_f_beta2=0"], "must be above 0"),
        (["--set", "threshold=nan"], "--set: threshold=nan must be in [0, 1]"),
        (["--num-classes", "3"], "labels must be integers from 0 to 2"),
        (["--num-classes", "1"], "give 2 to 255"),
        (["--benchmark", "kvazir"], "did you mean"),
    ],
)
def test_bad_input_is_one_line(says, folders, spoil, message):
    """Folders that are spoilt, or wrong words after good ones."""
    if callable(spoil):
        spoil(*folders)
    assert message in says(main, "score", *folders, *([] if callable(spoil) else spoil), code=2)


def test_a_benchmark_that_reads_its_masks_by_itself_is_refused(says, folders, monkeypatch):
    """As a package's may: only it knows what of a file is the object."""
    monkeypatch.setattr("harness.cli.data._benchmark", lambda name: SimpleNamespace(name=name, task="binary"))
    assert "leave --benchmark out" in says(main, "score", *folders, "--benchmark", "pets", code=2)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("p/a.npy", np.zeros((3, 60, 45)), "labels of several classes are images"),
        ("p/a.png", np.full((60, 45), 256, np.uint16), "must be integers from 0 to 2"),  # in a byte it would be 0
    ],
)
def test_bad_labels_of_several_classes_are_one_line(says, tmp_path, name, array, message):
    both = placed(tmp_path, {name: array, "g/a.png": np.eye(60, 45, dtype=np.uint8)})
    assert message in says(main, "score", *both, "--num-classes", "3", code=2)


def test_after_a_bad_mask_no_other_is_read(folders, monkeypatch):
    read = []

    def bad(path):
        read.append(path)
        time.sleep(0.05)
        raise DatasetError("bad")

    monkeypatch.setattr("harness.evaluation.score_folders.affinity", lambda: 1)
    predictions, masks = folders
    with pytest.raises(DatasetError, match="bad"):
        score_folders(predictions, masks, SplitScorer(("iou",), conventions=Conventions()), read_mask=bad)
    assert len(read) < COUNT / 2
