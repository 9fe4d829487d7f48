"""Checkpoints of backbones on disk: fingerprint, safe reading, strict checking. Imports torch only where tensors are
read."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_MEBIBYTE = 1 << 20


def fingerprint(path: Path) -> str:
    """16 hex digits from a file's size and its first and last MiB; cheap for gigabytes, and the same wherever the
    file lies.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            digest.update(file.read(_MEBIBYTE))
            if size > _MEBIBYTE:
                file.seek(max(size - _MEBIBYTE, _MEBIBYTE))
                digest.update(file.read(_MEBIBYTE))
    except OSError as error:
        raise UsageError(
            f"checkpoint {path} cannot be read ({error.strerror}); give the path of a file you have"
        ) from error
    return digest.hexdigest()[:16]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file or a ``.pth`` file, on the CPU; a pickle with code in it is refused.

    A dictionary that holds the tensors under ``model`` or ``state_dict`` is opened.

    Raises:
        UsageError: missing, truncated, holding code, or holding anything but tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError(f"checkpoint {path} does not exist; give the path of a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # it warns of what it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower() or _is_bare_pickle(path):  # torch names the first function it would call
            raise UsageError(
                f"checkpoint {path} may hold code besides tensors and was not opened; save its state_dict alone"
            ) from error
        raise UsageError(f"checkpoint {path} is no checkpoint or is damaged; download it again") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UsageError(
            f"checkpoint {path} is truncated or damaged; download it again ({_first_line(error)})"
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if (
        not isinstance(content, dict)
        or not all(isinstance(value, torch.Tensor) for value in content.values())
        or not content
    ):
        raise UsageError(f"checkpoint {path} holds no dictionary of tensors; save a model's state_dict")
    return content


def _is_bare_pickle(path: Path) -> bool:
    """A pickle of protocol 2 or later that torch.save did not put into an archive."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def require_match(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, path: Path, backbone: str) -> None:
    """Compare names and shapes of two state dictionaries, strictly.

    Raises:
        UsageError: they differ; names the first keys that are missing, unexpected, or of another shape.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, {backbone} needs {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    parts = [
        f"{word} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("shape", shapes))
        if names
    ]
    if parts:
        raise UsageError(
            f"checkpoint {path} is not a {backbone}: {'; '.join(parts)}; choose the matching --backbone or file"
        )
