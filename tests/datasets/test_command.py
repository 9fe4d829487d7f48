"""``sam-peft data``: what a user types and reads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.data import _print_check, main
from harness.datasets import samples
from harness.datasets.preparing.checking import Check, Verdict
from harness.datasets.preparing.prepare import Archive, Prepared
from harness.registry import LABELLED, SEGMENTED
from tests.datasets.archives import write_archive
from tests.values import REPOSITORY


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    """(arguments) -> (exit code, stdout, stderr)"""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_list_names_all_nine_with_terms_source_and_what_is_found(said, tmp_path: Path) -> None:
    samples.write_samples("camo", tmp_path, images=12, size=48)
    code, out, _ = said("list", "--data", tmp_path)
    assert code == 0
    for name in SEGMENTED:
        assert f"\n{name} " in f"\n{out}"
    assert f"found: {tmp_path / 'CAMO-V.1.0-CVIU2019'}" in out
    assert out.count("not found") == 9  # with origin, which is made of five
    assert "non-commercial" in out
    code, out, _ = said("list", "--data", tmp_path / "absent")
    assert (code, out.count("not found")) == (0, 10)
    _, out, _ = said("list", "--data", tmp_path, "--json")
    entries = {entry["name"]: entry for entry in json.loads(out)}
    assert set(entries) == {*SEGMENTED, *LABELLED}
    assert entries["camo"]["found"]
    assert not entries["sbu"]["found"]
    assert all(entry["terms"] and entry["source"] and entry["sizes"] for entry in entries.values())
    assert all(entries[name]["layouts"] for name in SEGMENTED)


def test_list_tells_of_two_candidates(said, tmp_path: Path) -> None:
    for layout in ("original", "autogluon"):
        write_archive("kvasir", tmp_path, layout=layout, images=12, size=48)
    _, out, _ = said("list", "--data", tmp_path)
    assert "Kvasir-SEG is there more than once" in out


def test_sample_prepare_check_in_a_row(said, tmp_path: Path) -> None:
    code, out, _ = said(
        "sample", "CVC-612".lower().replace("-", ""), "--data", tmp_path / "s", "--images", 24, "--size", 48
    )
    assert code == 0
    assert "CVC-ClinicDB" in out
    archive = shutil.make_archive(str(tmp_path / "cvc"), "zip", tmp_path / "s")
    code, out, _ = said("prepare", "cvc612", "--from", archive, "--data", tmp_path / "data")
    assert code == 0
    assert "SHA-256" in out
    assert "prepared: " in out
    code, out, _ = said("check", "cvc612", "--data", tmp_path / "data", "--workers", 1)
    assert code == 0, out
    code, out, _ = said("prepare", "cvc612", "--from", archive, "--data", tmp_path / "data", "--json")
    assert code == 0
    assert json.loads(out)["new"] is False


def test_failed_check_exits_1_and_json_says_why(said, tmp_path: Path) -> None:
    (samples.write_samples("cvc612", tmp_path, images=24, size=48) / "Original" / "1.tif").write_bytes(b"no image")
    code, out, _ = said("check", "cvc612", "--data", tmp_path, "--workers", 1)
    assert code == 1
    assert "failed  readable" in out
    assert "\n            Original/1.tif\n" in out
    code, out, _ = said("check", "cvc612", "--data", tmp_path, "--workers", 1, "--json")
    assert code == 1
    report = json.loads(out)
    assert report["passed"] is False
    assert report["benchmark"] == "cvc612"
    readable = next(verdict for verdict in report["verdicts"] if verdict["rule"] == "readable")
    assert readable["status"] == "failed"
    assert readable["files"] == ["Original/1.tif"]


def test_a_download_that_is_kept_is_told(said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives = [
        Archive(source=name, path=folder / name, sha256="0")
        for name, folder in (("kept.zip", tmp_path / "data" / ".downloads"), ("mine.zip", tmp_path / "mine"))
    ]
    for archive in archives:
        archive.path.parent.mkdir(parents=True)
        archive.path.write_bytes(bytes(2_000_000))
    done = Prepared(folder=tmp_path, layout="original", counts={}, archives=tuple(archives), new=True)
    monkeypatch.setattr("harness.datasets.preparing.prepare.prepare", lambda *arguments, **options: done)
    _, out, _ = said("prepare", "kvasir", "--from", "kept.zip", "--data", tmp_path / "data")
    (line,) = (line for line in out.splitlines() if line.startswith("the download is kept"))
    assert line == f"the download is kept: {archives[0].path} (remove it to free 2.0 MB)"


def test_every_benchmark_can_be_sampled(said, tmp_path: Path) -> None:
    code, out, _ = said("sample", "all", "--data", tmp_path, "--images", 12, "--size", 40)
    assert (code, len(out.splitlines())) == (0, len(SEGMENTED))
    assert len(list(tmp_path.iterdir())) == len(SEGMENTED)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "kvsir"], "did you mean 'kvasir'"),
        (["sample", "kvasir", "--images", "2"], "at least 12"),
        (["sample", "kvasir", "--seed", "-1"], "at least 0 seed, not -1"),
        (["prepare", "kvasir", "--from", "absent.zip"], "no archive absent.zip"),
        (["check", "camo", "--split-rule", "cod"], "choose from default, camo, camo+cod10k"),
        (["check", "kvasir"], "get it: "),
        (["check", "all"], "nothing is found"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(said, tmp_path: Path, arguments: list[str], words: str) -> None:
    code, out, err = said(*arguments, "--data", tmp_path / "root")
    assert code == 2
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepare", "kvasir", "--from", "{archive}"], "cannot write below {root}"),
        (["sample", "kvasir"], "cannot write below {root}"),
        (["check", "kvasir", "--workers", "-1"], "--workers -1 is negative"),
    ],
)
@pytest.mark.parametrize("root", ["/proc/nope", "{file}/below"])
def test_a_folder_that_cannot_be_and_a_negative_number_are_one_line(said, tmp_path, arguments, words, root):
    (tmp_path / "file").write_text("")
    (tmp_path / "source").mkdir()
    archive = shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "source")
    root = root.format(file=tmp_path / "file")
    code, out, err = said(*(word.format(archive=archive) for word in arguments), "--data", root)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words.format(root=root) in err


def test_of_what_did_not_pass_five_files_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    files = tuple(f"{number}.png" for number in range(7))
    verdicts = tuple(Verdict(rule=rule, status=rule, message="so it is", files=files) for rule in ("passed", "failed"))
    _print_check(Check(benchmark="x", root=Path("x"), splits=None, verdicts=verdicts))
    shown = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in shown if line.endswith(".png")] == list(files[:5])
    assert shown.index("            0.png") > next(i for i, line in enumerate(shown) if line.startswith("  failed"))


@pytest.mark.parametrize(
    ("name", "file", "parts"), [("pets", "plugin", ("train", "val", "test")), ("scans", "shortest", ("train", "test"))]
)
def test_the_benchmarks_of_the_documented_plugins_are_checked_by_several_workers(
    tmp_path: Path, name, file, parts
) -> None:
    """As a user does it: plug-in modules are importable in the process alone that loaded them."""
    generator = np.random.default_rng(0)
    for part in parts:
        for number in range(12):
            pixels = generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)
            for kind, values in (("images", pixels), ("masks", np.eye(24, dtype=np.uint8) * 255)):
                path = tmp_path / name / part / kind / f"{part}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
    code = "import sys; from harness.cli.data import main; sys.exit(main(sys.argv[1:]))"
    plugin = str(REPOSITORY / "docs" / "examples" / f"{file}.py")
    words = ["check", name, "--plugin", plugin, "--data", str(tmp_path), "--workers", "3"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"all {12 * len(parts)} pairs decode" in done.stdout


def test_listing_does_not_import_torch() -> None:
    code = (
        "import sys; from harness.cli.data import main; main(['list', '--data', 'nowhere']); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


def test_escape_sequences_in_names_never_reach_the_terminal(said, tmp_path: Path) -> None:
    folder = samples.write_samples("kvasir", tmp_path / "\x1b[2J\u202e", images=12, size=48)
    (folder / "images" / "\u202egnp.jpg").write_bytes(b"")
    for command in (("list",), ("check", "kvasir", "--workers", "1")):
        _, out, error = said(*command, "--data", tmp_path / "\x1b[2J\u202e")
        assert "\\x1b[2J\\u202e" in out
        assert (out + error).replace("\n", "").isprintable()
