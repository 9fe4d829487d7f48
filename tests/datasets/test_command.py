"""``sam-peft data``: what a user types and reads; generated samples are the same bytes for a seed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.cli.data import main
from harness.datasets import samples
from harness.datasets.base import DatasetError
from harness.registry import JOINT, SEGMENTED


def test_list_names_every_benchmark_with_terms_source_and_what_is_found(says, tmp_path: Path) -> None:
    samples.write_samples("camo", tmp_path, images=12, size=48)
    out = says(main, "list", "--data", tmp_path)
    entries = {entry.split()[0]: entry for entry in re.split(r"\n(?=\S)", out)}
    assert set(entries) == {*SEGMENTED, *JOINT}
    assert {name for name, entry in entries.items() if "not found: nothing of it in " not in entry} == {"camo"}
    assert f"found: {tmp_path / 'CAMO-V.1.0-CVIU2019'}" in entries["camo"]
    for part in (
        "CAMO: 1000 train/250 test images; terms: non-commercial",
        "get it: ",
        "layouts: original, sinet, autogluon",
    ):
        assert part in entries["camo"]
    assert "sam-peft data prepare camo --from https://" in entries["camo"]


def test_prepare_and_check_in_a_row(says, tmp_path: Path) -> None:
    made, root = tmp_path / "s", ("--data", tmp_path / "data")
    samples.write_samples("cvc612", made, images=24, size=48)
    archive = shutil.make_archive(str(tmp_path / "cvc"), "zip", made)
    assert "prepared: " in says(main, "prepare", "cvc612", "--from", archive, *root)
    says(main, "check", "cvc612", *root)
    assert "already there" in says(main, "prepare", "cvc612", "--from", archive, *root, code=2)


def test_failed_check_exits_1_and_json_says_why(says, tmp_path: Path) -> None:
    (samples.write_samples("cvc612", tmp_path, images=24, size=48) / "Original" / "1.tif").write_bytes(b"no image")
    words = ["check", "cvc612", "--data", tmp_path]
    out = says(main, *words, code=1)
    assert "failed  readable" in out
    assert "\n            Original/1.tif\n" in out
    report = json.loads(says(main, *words, "--json", code=1))
    assert (report["passed"], report["benchmark"]) == (False, "cvc612")
    readable = next(verdict for verdict in report["verdicts"] if verdict["rule"] == "readable")
    assert (readable["status"], readable["files"]) == ("failed", ["Original/1.tif"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "kvsir"], "did you mean 'kvasir'"),
        (["prepare", "kvasir", "--from", "absent.zip"], "no archive absent.zip"),
        (["check", "camo", "--split-rule", "cod"], "choose from default, camo+cod10k"),
        (["check", "kvasir"], "(--data DIR names another); get it: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(says, tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in says(main, *arguments, "--data", tmp_path / "root", code=2)
    assert not (tmp_path / "root").exists()


SCENES = {
    "kvasir": ((185.47, 105.19, 74.38), 0.2261, "cju14e51027ba6e2237999b02"),
    "cvc612": ((190.80, 106.22, 71.64), 0.2058, "88"),
    "isic2017": ((178.43, 131.45, 115.53), 0.3316, "ISIC_0000005"),
    "camo": ((103.83, 120.29, 68.01), 0.2489, "camourflage_00005"),
    "sbu": ((153.94, 147.80, 150.10), 0.2593, "lssd0005"),
    "leaf": ((87.11, 123.14, 55.79), 0.2532, "00005"),
    "road": ((109.06, 119.92, 97.29), 0.1430, "10078735_15"),
    "trans10k_v1": ((128.55, 122.90, 116.37), 0.2188, "6"),
    "trans10k_v2": ((111.63, 104.23, 107.72), 0.2060, "6"),
}
"""Of six scenes the mean colour and the share of objects, and the sixth name of 36: what records of the protocol ``demo`` were made on."""


@pytest.mark.parametrize("name", list(SEGMENTED))
def test_scenes_and_names_are_those_that_the_demos_records_were_made_on(name: str) -> None:
    colour, share, stem = SCENES[name]
    scenes = [samples.scene(name, number) for number in range(6)]
    assert np.mean([scene.image.mean(axis=(0, 1)) for scene in scenes], axis=0) == pytest.approx(colour, abs=0.01)
    assert np.mean([np.mean(scene.classes > 0) for scene in scenes]) == pytest.approx(share, abs=1e-4)
    assert samples.RECIPES[name].stem(5, 36) == stem


def test_jpegs_of_samples_have_the_quality_that_they_had(tmp_path: Path) -> None:
    folder = samples.write_samples("kvasir", tmp_path, images=12, size=48)
    first: dict[str, Any] = {part: Image.open(min((folder / part).glob("*.jpg"))) for part in ("images", "masks")}
    assert {part: image.quantization[0][0] for part, image in first.items()} == {"images": 3, "masks": 8}  # 92 and 75


def test_a_sample_that_another_process_wrote_meanwhile_serves(tmp_path: Path, monkeypatch) -> None:
    folder = samples.write_samples("kvasir", tmp_path, images=12, size=48)
    there, looks = samples._is_there, iter([False, True])
    monkeypatch.setattr(samples, "_is_there", lambda *where: there(*where) and next(looks))
    assert samples.write_samples("kvasir", tmp_path, images=12, size=48) == folder


def test_the_same_sample_is_kept_and_nothing_else_is_overwritten(tmp_path: Path) -> None:
    folder = samples.write_samples("kvasir", tmp_path, images=24, size=48)
    before = (folder / "images").stat().st_mtime_ns
    samples.write_samples("kvasir", tmp_path, images=24, size=48)
    assert (folder / "images").stat().st_mtime_ns == before
    with pytest.raises(DatasetError, match="not this generated sample"):
        samples.write_samples("kvasir", tmp_path, images=12, size=48)
    assert len(list((folder / "images").glob("*.jpg"))) == 24
    (tmp_path / "CVC-ClinicDB").mkdir()
    with pytest.raises(DatasetError, match="not this generated sample"):
        samples.write_samples("cvc612", tmp_path)
    assert not list((tmp_path / "CVC-ClinicDB").iterdir())
