"""Checkpoints of backbones on disk: safe reading, strict checking. Imports torch only where tensors are read."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.models.catalog import resolve_backbone
from harness.system.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


FAMILIES = (
    (r"(?:_packed_params|\.qweight$|\.zero_point$|\.SCB$|\.quant_state)", "a quantised model"),
    (r"\.lora_[AB]\.", "an adapter of PEFT"),
    (r"^image_encoder\.trunk\.", "SAM 2"),
    (r"^image_encoder\.patch_embed\.seq\.", "MobileSAM"),
    (r"^image_encoder\.blocks\.0\.attn\.qkv\.", "SAM"),
    (r"^vision_encoder\.(?:backbone|neck\.convs)\.", "SAM 2 as transformers names it"),
    (r"^vision_encoder\.layers\.0\.", "SAM as transformers names it"),
    (r"^(?:detector|detector_model)\.", "SAM 3"),
    (r"^(?:mask_decoder|prompt_encoder)\.", "SAM's mask decoder or prompt encoder alone"),
    (r"^encoder\.blocks\.", "a trained state or an adapter of this harness"),
    (r"^(?:backbone\.)?layer1\.0\.conv1\.", "a ResNet"),
    (r"^stages\.\d+\.blocks\.\d+\.attn\.attention_biases", "a TinyViT of timm"),
    (r"^pos_embed_window$", "a Hiera (SAM 2's trunk) of timm"),
    (r"^layers\.\d+\.blocks\.\d+\.attn\.relative_position", "a Swin"),
    (r"^(?:visual|vision_model|text_model)\.", "CLIP or a relative"),
    (r"^(?:\w+\.)?encoder\.layer\.\d+\.attention\.", "a ViT as transformers names it"),
    (r"^blocks\.0\.ls1\.gamma$", "a DINOv2 ViT"),
    (r"^blocks\.0\.gamma_1$", "a DINOv3 ViT of timm"),
    (r"^blocks\.0\.attn\.qkv\.weight$", "a plain ViT of timm"),
)
"""What the names of tensors say of a model; the first that any name fits."""
_SAM_SIZES = {768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H"}


def family_of(tensors: Mapping[str, Tensor]) -> str:
    """What model a state dictionary is of, in words, as far as names and shapes show: family, size, and what of a SAM it lacks."""
    family = next(
        (family for name, family in FAMILIES if any(re.search(name, key) for key in tensors)), "an unknown model"
    )
    parts = ("mask_decoder", "prompt_encoder")
    lacks = [part for part in parts if not any(key.startswith(f"{part}.") for key in tensors)]
    width = next((len(tensor) for key, tensor in tensors.items() if re.search(r"blocks\.0\.norm1\.weight$", key)), 0)
    depth = len({match[1] for key in tensors if (match := re.match(r"(?:image_encoder\.)?blocks\.(\d+)\.", key))})
    words = family
    if family == "SAM" and width in _SAM_SIZES:
        words += f" {_SAM_SIZES[width]}"
    if lacks and family in ("SAM", "MobileSAM"):
        words += f" without {' and '.join(lacks)}"
    weights = (tensor for key, tensor in tensors.items() if key.endswith("weight") and tensor.ndim > 1)
    if "quantised" not in family and not all(tensor.is_floating_point() for tensor in weights):
        words += ", quantised"
    details = [f"{depth} blocks, {width} wide"] * bool(depth and width)
    details.append(f"{sum(tensor.numel() for tensor in tensors.values()) / 1e6:.1f} M numbers")
    return f"{words} ({', '.join(details)})"


class Mismatch(UsageError):
    """A file that is another model than it should be.

    Args:
        fitting: names that fit.
        problems: ``missing``, ``unexpected``, ``shape`` or ``type`` -> every tensor of which that is so.
    """

    def __init__(self, message: str, *, fitting: Sequence[str], problems: Mapping[str, Sequence[str]]) -> None:
        super().__init__(message)
        self.fitting, self.problems = fitting, problems


def checkpoint_paths(items: Iterable[str]) -> dict[str, Path]:
    """``["vit_h=FILE"]`` as ``{"vit_h": FILE}``; without a backbone the key is "", and a file that exists is never taken apart at
    its ``=``. Raises UsageError: the part before ``=`` is no backbone."""
    paths: dict[str, Path] = {}
    for item in items:
        name, equals, file = item.partition("=")
        if not equals or Path(item).exists():
            paths[""] = Path(item)
            continue
        try:
            paths[resolve_backbone(name)] = Path(file)
        except UsageError as error:
            raise UsageError(f"--checkpoint {item}: no such file, and {error}") from error
    return paths


def require_checkpoint_file(path: Path | None) -> None:
    """Refuse a path of no file, before torch is loaded to read it. Raises UsageError: there is none."""
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

    load = partial(torch.load, map_location="cpu", weights_only=True)
    tensors = _read(path, safetensors=load_file, pickled=load)
    _require_finite(tensors, path)
    return tensors


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
    Of their types it distinguishes floating point from others."""
    import torch
    from safetensors import safe_open

    def empty(part: Any) -> Tensor:
        kind = torch.float32 if part.get_dtype().startswith(("F", "BF")) else torch.int64
        return torch.empty(part.get_shape(), device="meta", dtype=kind)

    def header(file: Path) -> dict[str, Tensor]:
        with safe_open(file, framework="pt") as content:
            return {name: empty(content.get_slice(name)) for name in content.keys()}  # noqa: SIM118 - no mapping

    tensors = _read(path, safetensors=header, pickled=_mapped)
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


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
    _require_tensors(path)
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
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UsageError(f"checkpoint {path} is truncated or damaged; download it again ({reason})") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = content.values() if isinstance(content, dict) else ()
    if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors):
        raise UsageError(f"checkpoint {path} holds no dictionary of tensors; save a model's state_dict")
    if any(tensor.is_quantized for tensor in tensors):
        raise UsageError(f"checkpoint {path} is {family_of(content)}; give the file that it was made from")
    return content


def _require_tensors(path: Path) -> None:
    """Refuse what is recognised as a whole program instead of a model's numbers."""
    with path.open("rb") as file:
        head = file.read(256)
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and (b"pytorch" in head or b"onnx" in head.lower())):
        raise UsageError(
            f"checkpoint {path} is an ONNX program, not a model's tensors; give the .pth or .safetensors that it was exported from"
        )
    if head[:2] == b"PK" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UsageError(
                    f"checkpoint {path} is a TorchScript program, not a model's tensors; save the model's state_dict"
                )


def _is_bare_pickle(path: Path) -> bool:
    """A pickle of protocol 2 or later that torch.save did not put into an archive."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def require_match(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, path: Path, backbone: str) -> None:
    """Compare names, shapes and types of two state dictionaries, strictly; any floating-point type will do. Raises Mismatch: they
    differ; names the first keys that are missing, unexpected, or of another shape or type, and what it is."""
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, {backbone} needs {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    types = [
        f"{name} holds no floating-point numbers"
        for name, tensor in expected.items()
        if name in state and tensor.is_floating_point() and not state[name].is_floating_point()
    ]
    problems = {"missing": missing, "unexpected": unexpected, "shape": shapes, "type": types}
    parts = [
        f"{word} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}" for word, names in problems.items() if names
    ]
    if parts:
        wrong = {line.partition(" ")[0] for line in (*shapes, *types)}
        raise Mismatch(
            f"checkpoint {path} is not a {backbone}: {'; '.join(parts)}; it is {family_of(state)}; choose the matching "
            "--backbone or file",
            fitting=[name for name in expected if name in state and name not in wrong],
            problems=problems,
        )
