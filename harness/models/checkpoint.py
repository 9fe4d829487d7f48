"""Checkpoints of backbones on disk: safe reading, strict checking. Imports torch only where tensors are read."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.models.catalog import resolve_backbone
from harness.system.errors import UsageError

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


def require_checkpoint_file(path: Path | None) -> None:
    """Refuse a path with no file behind it, before torch is loaded to read it.

    Raises:
        UsageError: there is none.
    """
    if path is not None and not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"checkpoint {path} {what}; give the path of a .pth or .safetensors file")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file or a ``.pth`` file, on the CPU; a pickle with code in it is refused.

    A dictionary that holds the tensors under ``model`` or ``state_dict`` is opened.

    Raises:
        UsageError: missing, truncated, holding code, anything but tensors, or numbers that are not finite.
    """
    import torch
    from safetensors.torch import load_file

    found = _read(
        path,
        safetensors=load_file,
        pickled=lambda file: torch.load(file, map_location="cpu", weights_only=True),
    )
    _require_finite(found, path)
    return found


def require_finite(path: Path) -> None:
    """As `read_tensors` with the same errors, a tensor at a time and without keeping any."""
    from safetensors import safe_open

    def wrong(file: Path) -> dict[str, Tensor]:
        with safe_open(file, framework="pt") as content:
            names = content.keys()
            return {name: tensor for name in names if not _is_finite(tensor := content.get_tensor(name))}

    _require_finite(_read(path, safetensors=wrong, pickled=_mapped), path)


def read_shapes(path: Path) -> dict[str, Tensor]:
    """As `read_tensors`, but tensors without values (on the meta device), which are not looked at: cheap for gigabytes.
    Of their types it tells floating point from others."""
    import torch
    from safetensors import safe_open

    def empty(part: Any) -> Tensor:
        kind = torch.float32 if part.get_dtype().startswith(("F", "BF")) else torch.int64
        return torch.empty(part.get_shape(), device="meta", dtype=kind)

    def header(file: Path) -> dict[str, Tensor]:
        with safe_open(file, framework="pt") as content:
            return {name: empty(content.get_slice(name)) for name in content.keys()}  # noqa: SIM118 - no mapping

    found = _read(path, safetensors=header, pickled=_mapped)
    return {name: tensor.to("meta") for name, tensor in found.items()}


def _mapped(file: Path) -> Any:
    import torch

    # What is no archive (torch.save before 1.6) cannot be mapped; what is none at all is refused either way.
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def _is_finite(tensor: Tensor) -> bool:
    values = tensor.float() if tensor.element_size() == 1 else tensor  # torch compares no 8-bit floats
    return bool(values.isfinite().all())


def _require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise UsageError(f"checkpoint {path} holds NaN or infinite numbers in {name}; download it again")


def _read(
    path: Path, *, safetensors: Callable[[Path], dict[str, Tensor]], pickled: Callable[[Path], Any]
) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError

    require_checkpoint_file(path)
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
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OSError,
    ) as error:
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
    """Compare names, shapes and types of two state dictionaries, strictly; any floating-point type will do.

    Raises:
        UsageError: they differ; names the first keys that are missing, unexpected, or of another shape or type.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, {backbone} needs {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    types = [
        f"{name} holds no floating-point numbers"
        for name, tensor in expected.items()
        if name in found and tensor.is_floating_point() and not found[name].is_floating_point()
    ]
    parts = [
        f"{word} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("shape", shapes), ("type", types))
        if names
    ]
    if parts:
        raise UsageError(
            f"checkpoint {path} is not a {backbone}: {'; '.join(parts)}; choose the matching --backbone or file"
        )
