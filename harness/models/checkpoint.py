"""Checkpoints of backbones on disk: safe reading, strict checking."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness.models.published import require_checkpoint_file
from harness.system.errors import UsageError

MOST_RATIO = 4
"""Largest ratio of the bytes of tensors to those of their file; weights hardly compress."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file or a ``.pth`` file, on the CPU; a pickle with code in it is refused.

    A dictionary that holds the tensors under ``model`` or ``state_dict`` is unwrapped.

    Raises:
        UsageError: the file is missing or truncated, or it holds code, anything but tensors, or numbers that are not finite.
    """
    tensors = _read(path)
    for name, tensor in tensors.items():
        values = tensor.float() if tensor.element_size() == 1 else tensor  # torch compares no 8-bit floats
        if tensor.is_floating_point() and not bool(values.isfinite().all()):
            raise UsageError(f"checkpoint {path} holds NaN or infinite numbers in {name}; download it again")
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    damage = (
        SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError, zipfile.BadZipFile,
    )  # fmt: skip
    require_checkpoint_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        require_unpacked(path)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch warns about what it then refuses
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"checkpoint {path} is damaged or may hold code besides tensors, and was not opened; save only a model's state_dict"
        ) from error
    except damage as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UsageError(f"checkpoint {path} is truncated or damaged; download it again ({reason})") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    entries = content.items() if isinstance(content, dict) else ()
    if not entries or not all(isinstance(name, str) and _is_plain(value) for name, value in entries):
        raise UsageError(
            f"checkpoint {path} does not hold a dictionary of plain tensors; save a model's state_dict, not quantised or sparse"
        )
    return content


def require_unpacked(path: Path) -> None:
    """Refuse a ``.pth`` file that inflates, judged by its directory alone: torch stores tensors uncompressed. Raises UsageError."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_RATIO * path.stat().st_size:
            raise UsageError(
                f"checkpoint {path} unpacks to {size >> 20} MiB, far more than saved weights would; it was not opened"
            )


def _is_plain(value: object) -> bool:
    """Whether it is a dense tensor with all of its numbers in the file: not on the meta device, nor a few that strides of 0 repeat."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not (value.is_meta or value.is_quantized or value.is_nested)
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def require_match(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, path: Path, backbone: str) -> None:
    """Compare names, shapes and types of two state dictionaries, strictly; any floating-point type will do. Raises UsageError: they
    differ; the message names the first keys that are missing, unexpected, or of another shape or type."""
    both = {name: (state[name], tensor) for name, tensor in expected.items() if name in state}
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "shape": [
            f"{name} is {tuple(given.shape)}, {backbone} needs {tuple(tensor.shape)}"
            for name, (given, tensor) in both.items()
            if given.shape != tensor.shape
        ],
        "type": [
            f"{name} holds no floating-point numbers"
            for name, (given, tensor) in both.items()
            if tensor.is_floating_point() and not given.is_floating_point()
        ],
    }
    parts = [
        f"{word} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for word, names in problems.items()
        if names
    ]
    if parts:
        raise UsageError(
            f"checkpoint {path} is not a {backbone}: {'; '.join(parts)}; choose the matching --backbone or file"
        )
