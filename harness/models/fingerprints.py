"""Which checkpoint a file is: a hash of every byte. Free of torch."""

from __future__ import annotations

import stat
from pathlib import Path

from harness.system.errors import UsageError
from harness.system.hashes import file_hashes

PREFIX = "sha256-"


def fingerprint(path: Path) -> str:
    """``sha256-`` and 64 hex digits of the whole file, the same in every folder. The file is read once (`file_hashes`).

    Raises:
        UsageError: it cannot be read, is not a file, or changes while it is read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"checkpoint {path} is not a file; give the path of a .pth or .safetensors file")
        return PREFIX + file_hashes([path], what=str(path))[path]
    except OSError as error:
        reason = error.strerror
        raise UsageError(f"checkpoint {path} cannot be read ({reason}); give the path of a file you have") from error
