"""One import name: ours is ``harness`` alone, so that Hugging Face's ``datasets`` and whatever needs it work beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.registry import METHODS
from tests.values import REPOSITORY


def python(code: str, *, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(place) for place in (path, REPOSITORY) if place)}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("place", ["clone", "elsewhere"])
def test_another_package_named_datasets_is_what_that_name_finds(tmp_path: Path, place: str) -> None:
    """Behind the clone's root on the path, too: a folder without ``__init__.py`` gives way to a package."""
    theirs = tmp_path / "site" / "datasets"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").write_text("Dataset = 'theirs'\n")
    code = (
        f"import sys; sys.path.insert(2, {str(theirs.parent)!r}); import datasets; assert datasets.Dataset == 'theirs'\n"
        "import harness.datasets.kvasir, harness.methods.configs\n"
        "from harness.registry import BENCHMARKS\n"
        "assert BENCHMARKS.get('kvasir').__module__ == 'harness.datasets.kvasir'\n"
    )
    done = python(code, cwd=REPOSITORY if place == "clone" else tmp_path)
    assert done.returncode == 0, done.stderr
    assert METHODS.get("lora").__module__ == "harness.methods.lora"


REAL = """
import tempfile, datasets, evaluate, torch
from transformers import Trainer, TrainingArguments
table = datasets.Dataset.from_dict({"x": [[1.0], [2.0]], "labels": [1.0, 2.0]}).with_format("torch")

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x, labels):
        return {"loss": ((x[:, 0] * self.weight - labels) ** 2).mean()}

class Sum(evaluate.Metric):
    def _info(self):
        one = datasets.Value("float32")
        features = datasets.Features({"predictions": one, "references": one})
        return evaluate.MetricInfo(description="", citation="", features=features)
    def _compute(self, predictions, references):
        return {"sum": sum(predictions) + sum(references)}

with tempfile.TemporaryDirectory() as folder:
    assert Sum(cache_dir=folder).compute(predictions=[1.0], references=[2.0]) == {"sum": 3.0}
    arguments = TrainingArguments(
        folder, max_steps=1, learning_rate=0.5, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    model = Model()
    Trainer(model=model, args=arguments, train_dataset=table).train()
    assert model.weight.item() > 0
import harness.datasets.kvasir, harness.run
from harness.registry import BENCHMARKS, METHODS
assert BENCHMARKS.get("kvasir").__module__ == "harness.datasets.kvasir"
assert METHODS.get("lora").__module__ == "harness.methods.lora"
assert datasets.__file__.endswith("__init__.py") and datasets.Dataset is not None
"""


@pytest.mark.parametrize("place", ["clone", "elsewhere"])
def test_the_real_datasets_evaluate_and_trainer_work_beside_ours(tmp_path: Path, place: str) -> None:
    """Ten seconds each, as it imports them all; skipped where one is absent."""
    for name in ("datasets", "evaluate", "accelerate", "transformers"):
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            pytest.skip(f"needs {name}")
    done = python(REAL, cwd=REPOSITORY if place == "clone" else tmp_path)
    assert done.returncode == 0, done.stderr


def test_listing_names_imports_no_torch() -> None:
    code = (
        "import sys, harness.registry, harness.run, harness.cli.status, harness.cli.tables, harness.planning.plan, harness.studies\n"
        "harness.registry.METHODS.names(); harness.run.parser()\n"
        "from harness.protocols.load import load_protocol; load_protocol('nas-lora')\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = python(code, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
