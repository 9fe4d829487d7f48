"""The top-level ``datasets`` folder shadows a well-known package of that name: what we depend on must import all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


PACKAGES = ("timm", "mmengine.config", "segment_anything", "submitit", "torchmetrics", "peft")


def test_packages_import_from_the_repository_root() -> None:
    code = f"import datasets, {', '.join(PACKAGES)}; assert datasets.BUILTIN, 'another package of that name was found'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_listing_names_imports_no_torch() -> None:
    code = (
        "import sys, harness.registry, harness.run, harness.status, harness.tables, harness.planning.plan, harness.studies\n"
        "harness.registry.METHODS.names(); harness.run.parser()\n"
        "from harness.protocols.load import load_protocol; load_protocol('nas-lora')\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
