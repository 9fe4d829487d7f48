"""Checkpoints of backbones on disk: safe reading, strict checking. Imports torch only where tensors are read."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.models.catalog import resolve_backbone

if TYPE_CHECKING:
    from torch import Tensor


def checkpoint_paths(items: Iterable[str]) -> dict[str, Path]:
    """``["vit_h=FILE"]`` as ``{"vit_h": FILE}``; without a backbone the key is "", and a file that exists is never taken
    apart at its ``=``.

    Raises:
        UsageError: the part before ``=`` is no backbone.
    """
    found: dict[str, Path] = {}
    for item in items:
        name, equals, file = item.partition("=")
        if not equals or Path(item).exists():
            found[""] = Path(item)
            continue
        try:
            found[resolve_backbone(name)] = Path(file)
        except UsageError as error:
            raise UsageError(f"--checkpoint {item}: no such file, and {error}") from error
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file or a ``.pth`` file, on the CPU; a pickle with code in it is refused.

    A dictionary that holds the tensors under ``model`` or ``state_dict`` is opened.

    Raises:
        UsageError: missing, truncated, holding code, or holding anything but tensors.
    """
    import torch
    from safetensors.torch import load_file

    return _read(
        path,
        safetensors=load_file,
        pickled=lambda file: torch.load(file, map_location="cpu", weights_only=True),
    )


def read_shapes(path: Path) -> dict[str, Tensor]:
    """As `read_tensors` with the same errors, but tensors without values (on the meta device): cheap for gigabytes."""
    import torch
    from safetensors import safe_open

    def header(file: Path) -> dict[str, Tensor]:
        with safe_open(file, framework="pt") as content:
            return {
                name: torch.empty(content.get_slice(name).get_shape(), device="meta")
                for name in content.keys()  # noqa: SIM118 - the file is no mapping
            }

    def mapped(file: Path) -> Any:
        # What is no archive (torch.save before 1.6) cannot be mapped; what is none at all is refused either way.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))

    found = _read(path, safetensors=header, pickled=mapped)
    return {name: tensor.to("meta") for name, tensor in found.items()}


def _read(
    path: Path, *, safetensors: Callable[[Path], dict[str, Tensor]], pickled: Callable[[Path], Any]
) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError

    if not path.is_file():
        raise UsageError(f"checkpoint {path} does not exist; give the path of a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return safetensors(path)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # it warns of what it then refuses
            content = pickled(path)
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
