"""Frozen copies of the code: jobs run what was there when they were submitted, however the tree is edited later."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import datasets
import harness
import methods

PACKAGES = (methods, datasets, harness)


def take(folder: Path, *, extra: Sequence[Path] = ()) -> Path:
    """Copy the three packages as they are now, uncommitted changes included, to ``folder/<hash of the content>``.

    The same code gives the same folder, which is made once. Files that git ignores are left out.

    Args:
        folder: where snapshots go.
        extra: further files, such as plug-ins; copied to ``plugins/``, numbered in their order.

    Returns:
        The snapshot; its name is the hash. With it as working directory, ``python -m harness.run`` runs the frozen code.
    """
    files = {Path(package.__name__) / name: root / name for package in PACKAGES for root, name in _files(package)}
    files |= {plugin_path(index, path): path for index, path in enumerate(extra)}
    contents = {name: path.read_bytes() for name, path in sorted(files.items())}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    target = folder / digest.hexdigest()[:12]
    if target.is_dir():
        return target
    temporary = folder / f".{target.name}.{secrets.token_hex(4)}"
    for name, content in contents.items():
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        os.rename(temporary, target)
    except OSError:
        shutil.rmtree(temporary)
        if not target.is_dir():
            raise
    return target


def plugin_path(index: int, path: Path) -> Path:
    """Where the ``index``-th extra file lies in a snapshot."""
    return Path("plugins") / str(index) / path.name


def _files(package: object) -> list[tuple[Path, Path]]:
    """(root, path relative to root) of a package's source and data files."""
    root = Path(str(package.__file__)).parent  # type: ignore[attr-defined]
    listed = (
        subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "."],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        if shutil.which("git")
        else None
    )
    if listed is not None and listed.returncode == 0 and listed.stdout:
        names = [Path(name) for name in listed.stdout.split("\0") if name]
    else:  # installed without git
        names = [path.relative_to(root) for path in root.rglob("*") if "__pycache__" not in path.parts]
    return [(root, name) for name in names if (root / name).is_file()]
