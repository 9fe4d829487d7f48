"""A pretended GPU: its tensors compute on the CPU, call themselves ``cuda:0`` and refuse to meet CPU tensors.

A machine without a GPU so shows what would fail on one, and what would wait. Each copy and each read that makes the processor wait for the
device is counted, with the line that makes it. Kernels are the CPU's, so that neither speed nor rounding is a GPU's; autocast follows
the CPU's lists of operations.

A wait is a read of a value (``item``, ``cpu``, ``tolist``), a copy from pageable memory, or a synchronisation. So is an operation whose
output's size depends on values (boolean indexing, ``nonzero``, ``unique``). None is a copy from pinned memory, or a read, with
``non_blocking=True``.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

ROOT = f"{Path(__file__).parents[2]}/"
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")

READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal", "is_nonzero",
    "repeat_interleave.Tensor", "histc",
}  # fmt: skip
"""Operations whose result, or its size, the processor must know before it goes on."""
COPIES = {"copy_", "_to_copy", "_copy_from", "_foreach_copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
STRICT = {
    "cat", "stack", "index_copy", "index_add", "gather", "scatter", "index_select", "embedding", "addmm", "mm", "bmm", "linear",
}  # fmt: skip
"""Operations that refuse even a CPU tensor without dimensions, which others take as a number."""
FACTORIES = (  # noqa: SIM905
    "arange zeros ones empty full tensor as_tensor eye rand randn randint randperm linspace zeros_like ones_like empty_like full_like "
    "rand_like randn_like triu_indices tril_indices scalar_tensor empty_strided"
).split()


class Mismatch(RuntimeError):
    """Tensors of two devices met; the message says where."""


def is_cuda(device: Any) -> bool:
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")


def own_lines() -> Iterator[str]:
    """``file:line`` of the frames of this project and of segment_anything, innermost first; empty where autograd's engine was entered."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if frame.f_code.co_name == "_engine_run_backward":
            yield ""
        elif (name.startswith(ROOT) and "/.venv/" not in name and name != __file__) or "/segment_anything/" in name:
            yield f"{name.removeprefix(ROOT).rpartition('site-packages/')[2]}:{frame.f_lineno}"
        frame = frame.f_back


def here() -> str:
    """The innermost of `own_lines`."""
    return next(filter(None, own_lines()), "?")


class Gpu:
    """The device of this process. ``waits``: (kind, file:line) -> how often, in ``thread``, the one that launches kernels. ``refuses``:
    as in torch's ``set_sync_debug_mode("error")``, a wait is an error."""

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.refuses = False
        self.thread = threading.get_ident()

    def wait(self, kind: str) -> None:
        if threading.get_ident() == self.thread:
            self.waits[kind, here()] += 1
            if self.refuses and kind != "synchronize":  # which torch does not refuse
                raise RuntimeError("called a synchronizing CUDA operation")

    def up(self, x: Tensor, *, non_blocking: bool = False) -> Tensor:
        """A copy of ``x`` on the device."""
        if isinstance(x, OnGpu):
            return x
        if not (non_blocking and x.is_pinned()):
            self.wait("copy to the device")
        return OnGpu(_detached(x).clone())

    def down(self, x: Tensor, *, non_blocking: bool = False) -> Tensor:
        """A copy of ``x`` on the CPU."""
        if not isinstance(x, OnGpu):
            return x
        if not non_blocking:
            self.wait("read")
        return _held(_detached(x)).clone()

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any]) -> Any:
        """One operation of torch with a tensor of the device among its arguments; ``leaves``: all of them, out of their lists."""
        short = func._schema.name.split("::")[1]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if short not in COPIES:
            self._refuse_strangers(func, short, args, leaves)
        if short in READS or func.__name__ in READS:
            self.wait(short)
        elif short in INDEXING:
            masked = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
            if masked and not (len(args) > 2 and args[2].numel() == 1):  # of one value torch makes masked_fill
                self.wait("boolean index")
        elif short in COPIES and short != "_to_copy" and len({isinstance(t, OnGpu) for t in tensors}) == 2:
            pinned = all(t.is_pinned() for t in tensors if not isinstance(t, OnGpu))
            if not (pinned and (kwargs.get("non_blocking") or True in args[2:])):
                self.wait("copy between host and device")
        if is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": CPU}
        out = func(*_mapped(_held, args), **{name: _mapped(_held, value) for name, value in kwargs.items()})
        owners = {id(_held(t)): t for t in tensors}  # a tensor that is written into stays the object that it was

        def wrapped(x: Any) -> Any:
            known = owners.get(id(x))
            return known if known is not None else OnGpu(x) if isinstance(x, Tensor) else x

        return _mapped(wrapped, out)

    def _refuse_strangers(self, func: Any, short: str, args: tuple[Any, ...], leaves: list[Any]) -> None:
        if any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise Mismatch(f"{func.__name__}: a generator of the CPU makes numbers on cuda:0, at {here()}")
        if short == "_sparse_addmm":
            return  # torch makes the zero that it adds to in C++, on what it takes for the other tensors' device
        plain = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, OnGpu)]
        if not plain or not next(own_lines(), ""):
            return  # autograd's engine makes some on what it takes for the tensors' device
        indices = [i for i in args[1] if i is not None] if short in INDEXING else []
        for x in plain:
            if any(x is index for index in indices):
                self.wait("copy of an index")
            elif x.dim() or short in STRICT:
                shapes = ", ".join(f"{tuple(t.shape)} {t.device}" for t in leaves if isinstance(t, Tensor))
                raise Mismatch(f"{func.__name__}: tensors of two devices ({shapes}), at {here()}")


GPU = Gpu()


def _detached(x: Tensor) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(f"no gradient goes from one device to another here, at {here()}")
    return x.detach()


def _leaves(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _leaves(value)
        else:
            yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_mapped(change, item) for item in value)
    return change(value)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnGpu) else x


class OnGpu(Tensor):
    """A tensor of the pretended device around one of the CPU, ``held``."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        layout: Any = {"strides": held.stride(), "storage_offset": held.storage_offset(), "layout": held.layout}
        # On the CPU to autograd's engine, which has no other device.
        made: OnGpu = Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=CPU, **layout)
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return GPU.run(func, args, kwargs or {}, [*_leaves(args), *_leaves((kwargs or {}).values())])

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        return f"OnGpu({self.held})"

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"a tensor of cuda:0 is no array of NumPy; copy it with cpu() first, at {here()}")

    __array__ = numpy

    def tolist(self) -> Any:
        GPU.wait("read")
        return _held(self.detach()).tolist()

    def pin_memory(self, *_: Any, **__: Any) -> Any:
        raise Mismatch(f"a tensor of cuda:0 cannot be pinned, at {here()}")

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, *_: Any, **__: Any) -> Tensor:
        GPU.wait("copy to the device")
        return OnGpu(torch.as_tensor(data, dtype=dtype or self.dtype).clone())

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made: Tensor = OnGpu(_held(self.detach()).clone())
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        return memo.setdefault(id(self), made.requires_grad_(self.requires_grad))


@contextlib.contextmanager
def pretended() -> Iterator[Gpu]:
    """torch has a GPU inside, in every thread; the waits of this thread are counted from the start."""
    GPU.thread = threading.get_ident()
    GPU.waits.clear()
    real_enabled, real_dtype, clip, functional = (
        torch.is_autocast_enabled, torch.get_autocast_dtype, torch.nn.utils.clip_grad, torch.nn.functional
    )  # fmt: skip

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, *given: Any, **named: Any) -> None:
            super().__init__(device_type.replace("cuda", "cpu"), *given, **named)

    swapping = torch.__future__.get_swap_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for owner, names in (
            (torch, {name: _factory(name, getattr(torch, name)) for name in FACTORIES}),
            (torch.fft, {"fftfreq": _factory("fftfreq", torch.fft.fftfreq)}),
            (Tensor, _moves()),
            (torch.cuda, _cuda()),
            (
                torch.accelerator,
                {"current_stream": lambda *_: SimpleNamespace(is_capturing=lambda: False)},
            ),  # optimisers ask
            (clip, {GROUPS: _grouped(getattr(clip, GROUPS))}),
            (functional, {"one_hot": _one_hot(functional.one_hot)}),
            (torch.amp, {"autocast": Autocast}),
            (torch, {"autocast": Autocast}),
            (torch, {"is_autocast_enabled": lambda device="cpu": real_enabled("cpu")}),
            (torch, {"get_autocast_dtype": lambda device: real_dtype("cpu")}),
        ):
            stack.enter_context(patch.multiple(owner, **names))
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield GPU
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swapping)


def _factory(name: str, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(*given: Any, **named: Any) -> Tensor:
        device = named.get("device")
        if not is_cuda(device):
            elsewhere = device is not None and name.endswith("_like")
            return real(*map(_held, given), **named) if elsewhere else real(*given, **named)
        if named.get("generator") is not None:
            raise Mismatch(f"{name}: a generator of the CPU makes numbers on cuda:0, at {here()}")
        made = real(*given, **{**named, "device": CPU})
        if isinstance(made, OnGpu):
            return made
        if name in ("tensor", "as_tensor"):
            GPU.wait("copy to the device")
        return OnGpu(made.detach()).requires_grad_(made.requires_grad)

    return make


GROUPS = "_group_tensors_by_device_and_dtype"


def _grouped(real: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
    """torch's own looks for the devices in C++."""
    return lambda tensors, *given: {
        (groups[0][0].device, dtype): (groups, indices)
        for (_, dtype), (groups, indices) in real(tensors, *given).items()
    }


def _one_hot(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch's own looks for the device in C++, where it is the CPU."""

    def one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
        if isinstance(x, OnGpu) and num_classes == -1:
            GPU.wait("read")
        made = real(_held(x), num_classes)
        return OnGpu(made) if isinstance(x, OnGpu) else made

    return one_hot


def _moves() -> dict[str, Any]:
    """The methods of all tensors that go from one device to another."""
    real_to, real_pinned = Tensor.to, Tensor.is_pinned

    def to(x: Tensor, *given: Any, copy: bool = False, **named: Any) -> Tensor:
        if given and isinstance(given[0], Tensor):
            given = (given[0].device, given[0].dtype, *given[1:])
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*given, **named)
        moved = x
        if device is not None and device.type in ("cuda", "cpu"):
            moved = (GPU.up if device.type == "cuda" else GPU.down)(x, non_blocking=non_blocking)
        elif device is not None:
            return real_to(x, *given, **named)
        form: Any = {} if memory_format is None else {"memory_format": memory_format}
        moved = real_to(moved, dtype or moved.dtype, **form)
        return moved.clone() if copy and moved is x else moved

    def pin(x: Tensor, *_: Any) -> Tensor:
        pinned = x.clone()
        pinned._pretends_pinned = True  # type: ignore[attr-defined]
        return pinned

    return {
        "to": to,
        "cpu": lambda x, **_: GPU.down(x),
        "cuda": lambda x, device=None, non_blocking=False, **_: GPU.up(x, non_blocking=non_blocking),
        "pin_memory": pin,
        "is_pinned": lambda x, *_: hasattr(x, "_pretends_pinned") or real_pinned(x),
    }


class _Event:
    """A moment on the device, which the processor waits for."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        GPU.wait("event")


def _cuda() -> dict[str, Any]:
    """What ``torch.cuda`` says of the device: an H100 with 80 GiB, of which a tenth is in use."""
    gib = 1 << 30
    properties = SimpleNamespace(
        total_memory=80 * gib, name="Pretended GPU", major=9, minor=0, multi_processor_count=132
    )
    answers = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "get_device_name": properties.name,
        "get_device_capability": (9, 0), "get_device_properties": properties, "is_bf16_supported": True,
        "mem_get_info": (72 * gib, 80 * gib), "memory_allocated": 8 * gib, "max_memory_allocated": 8 * gib,
        "memory_reserved": 8 * gib, "max_memory_reserved": 8 * gib, "set_device": None, "empty_cache": None,
        "reset_peak_memory_stats": None, "manual_seed": None, "manual_seed_all": None,
    }  # fmt: skip
    said = {name: (lambda *_, answer=answer, **__: answer) for name, answer in answers.items()}
    refusing = {"set_sync_debug_mode": lambda mode: setattr(GPU, "refuses", mode == "error")}
    return {**said, **refusing, "synchronize": lambda *_: GPU.wait("synchronize"), "Event": _Event}
