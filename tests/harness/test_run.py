"""The main job from its command line to its table, and every wrong input as one line."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.datasets import samples
from harness.planning.understand import all_methods
from harness.run import main
from tests.harness.dispatch import standin
from tests.harness.planning.tiles import planned_of, write_tiles

PLAIN = ["--protocol", "demo", "--executor", "inline", "--methods", "lora", "--datasets", "kvasir"]
DEMO = [*PLAIN, "--set", "epochs=1"]


def test_a_folder_of_ones_own_may_have_a_name_like_a_benchmarks(tmp_path: Path) -> None:
    assert planned_of(tmp_path, "--datasets", f"roads={write_tiles(tmp_path / 'data')}").jobs


def test_results_that_cannot_be_a_folder(says, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in says(main, *DEMO, "--results", tmp_path / "file", code=2)


def test_main_job_trains_tests_records_and_prints_a_table_and_a_second_call_only_prints_it(capsys, tmp_path) -> None:
    arguments = [*DEMO, "--results", str(tmp_path)]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert re.search(r"^\| lora\b", first, re.MULTILINE | re.IGNORECASE)
    (path,) = (tmp_path / "records").glob("*.json")
    record = json.loads(path.read_text())
    assert record["code"] == "OK"
    assert set(record["scores"]) == {"best", "last", "merged-exact"}
    assert 0 < record["cost"]["step_time_s"] < record["cost"]["wall_time_s"]  # what scores are: test_run_by_hand.py
    assert record["parameters"]["encoder"] == 3072
    assert (tmp_path / "records" / f"{record['key']}.images.csv").is_file()
    assert all(record["environment"][name] for name in ("numbers", "numbers_method", "numbers_benchmark"))
    written = path.stat().st_mtime_ns
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert path.stat().st_mtime_ns == written
    assert (tmp_path / "tables" / "demo.md").read_text() == first


def test_unreadable_image_fails_its_run_with_the_file_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = samples.write_samples("kvasir", tmp_path / "data")
    image = sorted(root.rglob("images/*.jpg"))[0]
    image.write_bytes(image.read_bytes()[:200])
    assert main([*PLAIN[:-1], f"kvasir={root}", "--set", "epochs=1", "--results", str(tmp_path)]) == 1
    (path,) = (tmp_path / "records").glob("*.json")
    record = json.loads(path.read_text())
    assert record["code"] == "NO_DATA"
    assert image.name in str(record["message"])
    assert "NO_DATA" in capsys.readouterr().out


def test_diverging_run_has_its_code_and_a_retry_reruns_it(tmp_path: Path, says) -> None:
    arguments = [*DEMO, "--results", str(tmp_path), "--set", "lr=1e30", "--set", "clip=0"]
    assert "| DIVERGED" in says(main, *arguments, code=1)
    (path,) = (tmp_path / "records").glob("*.json")
    before = path.stat().st_mtime_ns
    assert main(arguments) == 1
    assert path.stat().st_mtime_ns != before


def test_plan_prints_and_starts_nothing(tmp_path: Path, says) -> None:
    grid = ["--protocol", "nas-lora", "--backbone", "vit_h", "--methods", "all", "--datasets", "all"]
    text = says(main, *grid, "--plan", "--results", tmp_path, code=1)
    assert f"{9 * len(all_methods())} runs" in text
    assert "4,020,096" in text
    assert len([line for line in text.splitlines() if line.startswith("missing: ")]) == 2
    assert not any(tmp_path.iterdir())


def test_a_plan_of_generated_images_writes_nothing_and_has_the_keys_of_the_runs(tmp_path, says, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "harness.experiment.experiment", standin)
    assert main([*DEMO, "--plan", "--results", str(tmp_path / "runs")]) == 0
    assert not any(tmp_path.iterdir())
    assert main([*DEMO, "--results", str(tmp_path / "runs")]) == 0
    assert "1 run, 1 finished" in says(main, *DEMO, "--plan", "--results", tmp_path / "runs")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--protocol", "mini", "--methods", "lora", "--datasets", "leaf"], id="files"),
        pytest.param([*DEMO, "--checkpoint", "nowhere.pth", "--tune", "lr=1e-4,1e-3"], id="trials"),
    ],
)
def test_where_something_is_missing_nothing_is_written_but_generated_images(words: list[str], tmp_path, capsys) -> None:
    results = tmp_path / "new" / "runs"
    assert main([*words, "--results", str(results)]) == 2
    assert "sam-peft data list" in (error := capsys.readouterr().err) or "nowhere.pth does not exist" in error
    assert "trials have no result yet" not in error
    assert {path.name for path in tmp_path.glob("new/runs/*")} <= {"sample-data"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_in_a_first_run_prints_how_to_continue(number: int, code: int, tmp_path, capsys) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 300
        while not any(tmp_path.glob("state/*/progress.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    finger = threading.Thread(target=interrupt)
    finger.start()
    assert main([*PLAIN, "--results", str(tmp_path), "--set", "epochs=50"]) == code
    finger.join()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("interrupted: 1 run left: ")
    assert last.endswith("to continue")
