"""What is installed works without a clone: one wheel, one import name beside others' packages, and the notebook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from harness.registry import METHODS
from tests.values import REPOSITORY


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel; its other packages are those of the tests."""
    pytest.importorskip("setuptools", reason="builds the wheel with the environment's own setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    left_out = (".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", "records", "evidence")
    shutil.copytree(REPOSITORY, folder / "clone", symlinks=True, ignore=shutil.ignore_patterns(*left_out))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    build = [sys.executable, "-m", "pip", "wheel", *options, str(folder / "clone")]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    return folder / "venv" / "bin" / "python"


def run(python: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SAM_PEFT_SETTINGS": "none"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run([str(python), *words], cwd=cwd, env=environment, capture_output=True, text=True)


def test_harness_alone_is_at_the_top(installed: Path) -> None:
    (site,) = installed.parents[1].glob("lib/python*/site-packages")
    names = {path.name for path in site.iterdir() if path.suffix not in (".pth", ".dist-info")}
    assert names - {"__pycache__"} == {"harness"}
    assert not [path for path in site.rglob("*") if path.is_symlink()]
    assert (site / "harness" / "datasets" / "manifests").is_dir()


@pytest.mark.slow
def test_the_main_job_and_what_reads_its_records_work_outside_a_clone(installed: Path, tmp_path: Path) -> None:
    small = ["--datasets", "kvasir", "--set", "epochs=1", "--set", "train_limit=4", "--set", "test_limit=2"]
    done = run(installed, "-m", "harness.run", "--methods", "lora", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = ["run", "--methods", "lora", *small, "--cluster", "gpu", "--plan"]
    verbs = (["tables"], ["report", "--out", "pages"], plan)
    script = f"from harness.__main__ import main\nfor words in {verbs}:\n    assert main(words) == 0, words"
    done = run(installed, "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pages" / "index.html").stat().st_size > 2_000


@pytest.mark.slow
def test_the_notebook_runs_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((REPOSITORY / "docs" / "start.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    monkeypatch.setenv("MPLBACKEND", "agg")
    done = python("\n\n".join(cells) + "\nprint(len(best), 'scores')", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 scores" in done.stdout  # three methods, IoU and Dice
    assert list(tmp_path.glob("masks-*/overlays/*.png"))


def python(code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("place", ["clone", pytest.param("elsewhere", marks=pytest.mark.slow)])
def test_another_package_named_datasets_is_what_that_name_finds(tmp_path: Path, place: str) -> None:
    """Behind the clone's root on the path, too: a folder without ``__init__.py`` gives way to a package."""
    theirs = tmp_path / "site" / "datasets"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").write_text("Dataset = 'theirs'\n")
    code = (
        f"import sys; sys.path.insert(2, {str(theirs.parent)!r}); import datasets; assert datasets.Dataset == 'theirs'\n"
        "import harness.datasets.kvasir, harness.methods.base\n"
        "from harness.registry import BENCHMARKS\n"
        "assert BENCHMARKS.get('kvasir').__module__ == 'harness.datasets.kvasir'\n"
    )
    done = python(code, cwd=REPOSITORY if place == "clone" else tmp_path)
    assert done.returncode == 0, done.stderr
    assert METHODS.get("lora").__module__ == "harness.methods.lora"
