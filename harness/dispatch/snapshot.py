"""Frozen copies of the code: jobs run what was there when they were submitted, however the tree is edited later."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import harness
from harness.errors import UsageError

ROOT = Path(str(harness.__file__)).parent
PACKAGES = {Path("harness", name): (ROOT / name).resolve() for name in ("", "methods", "datasets")}
"""Where a snapshot has what; in a clone two of them are links of ours to the folders beside ``harness``."""


def take(folder: Path, *, extra: Sequence[Path] = ()) -> Path:
    """Copy the package as it is now, uncommitted changes included, to ``folder/<hash of the content>``.

    The same code gives the same folder, which is made once and hashed again before each use. Files that git ignores are
    left out.

    Args:
        folder: where snapshots go.
        extra: further files, such as plug-ins; copied to ``plugins/``, numbered in their order.

    Returns:
        The snapshot; its name is the hash. With it as working directory, ``python -m harness.run`` runs the frozen code.

    Raises:
        UsageError: the folder is there and holds something else than its name says.
    """
    files = {place / name: root / name for place, root in PACKAGES.items() for name in _files(root)}
    files |= {plugin_path(index, path): path for index, path in enumerate(extra)}
    contents = {name: path.read_bytes() for name, path in sorted(files.items())}
    target = folder / _hash(contents)
    if target.is_dir():
        for folder_in, folders, _ in os.walk(target):
            if "__pycache__" in folders:  # byte code, which is run in place of the files and not hashed
                folders.remove("__pycache__")
                shutil.rmtree(Path(folder_in, "__pycache__"), ignore_errors=True)
        require_unaltered(target)
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
        require_unaltered(target)
    return target


def require_unaltered(frozen: Path) -> None:
    """Hash a snapshot again.

    Raises:
        UsageError: its files are not those that its name is the hash of, or one cannot be read.
    """
    found = hash_of(frozen)
    if found != frozen.name:
        raise UsageError(_altered(frozen, f"its files hash to {found}"))


def hash_of(frozen: Path) -> str:
    """Of the files in a snapshot, all but byte code: its name, if nobody altered it.

    Raises:
        UsageError: something in it is no plain file, or cannot be read.
    """
    contents: dict[Path, bytes] = {}
    try:
        for path in _files_below(frozen):
            name = path.relative_to(frozen)
            if path.is_symlink() or not path.is_file():
                raise UsageError(_altered(frozen, f"{name} is no plain file"))
            contents[name] = path.read_bytes()
    except OSError as error:
        raise UsageError(_altered(frozen, f"{error.filename} cannot be read ({error.strerror})")) from error
    return _hash(contents)


def _files_below(frozen: Path) -> Iterator[Path]:
    """All that is no folder. One of byte code is not entered: other processes make and remove it meanwhile."""

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(frozen, onerror=fail):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(folder, name) for name in files)
        yield from (path for name in folders if (path := Path(folder, name)).is_symlink())


def _altered(frozen: Path, reason: str) -> str:
    return (
        f"the frozen code in {frozen} was altered since it was taken ({reason}); move that folder away and give the command "
        "again (runs that were submitted with it stop with this line and can be submitted again)"
    )


def _hash(contents: Mapping[Path, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f"{name}\0{len(contents[name])}\0".encode())
        digest.update(contents[name])
    return digest.hexdigest()[:12]


def plugin_path(index: int, path: Path) -> Path:
    """Where the ``index``-th extra file lies in a snapshot."""
    return Path("plugins") / str(index) / path.name


def _files(root: Path) -> list[Path]:
    """Source and data files below ``root``, relative to it."""
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
    return [name for name in names if (root / name).is_file()]
