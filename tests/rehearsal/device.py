"""A pretended GPU: its tensors compute on the CPU, call themselves ``cuda:0`` and refuse to meet CPU tensors.

A machine without a GPU so sees what would fail on one, and what would wait: each copy and each read that makes the processor wait for the
device is counted, with the line that asks for it. Kernels are the CPU's, so that neither speed nor rounding is a GPU's; autocast follows
the CPU's lists of operations.

What is a wait: a read of a value (``item``, ``cpu``, ``tolist``), a copy from pageable memory, an operation whose output's size
depends on values (boolean indexing, ``nonzero``, ``unique``), a synchronisation. None is a copy from pinned memory, or a read, with
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


def own_frames(start: FrameType | None) -> Iterator[FrameType | None]:
    """The frames of this project and of segment_anything, innermost first; None where autograd's engine was entered."""
    while start is not None:
        name = start.f_code.co_filename
        if name.endswith("torch/autograd/graph.py") and start.f_code.co_name == "_engine_run_backward":
            yield None
        elif (name.startswith(ROOT) and "/.venv/" not in name and name != __file__) or "/segment_anything/" in name:
            yield start
        start = start.f_back


def here() -> str:
    """``file:line`` of the innermost frame of this project."""
    for frame in own_frames(sys._getframe(1)):
        if frame is not None:
            name = frame.f_code.co_filename.removeprefix(ROOT).rpartition("site-packages/")[2]
            return f"{name}:{frame.f_lineno}"
    return "?"


class Gpu:
    """The device of this process. ``waits``: (kind, file:line) -> how often, in ``thread``, the one that launches kernels."""

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.thread = threading.get_ident()

    def wait(self, kind: str) -> None:
        if threading.get_ident() == self.thread:
            self.waits[kind, here()] += 1

    def up(self, x: Tensor, *, non_blocking: bool = False) -> Tensor:
        """A copy of ``x`` on the device."""
        if isinstance(x, OnGpu):
            return x
        if not (non_blocking and x.is_pinned()):
            self.wait("copy to the device")
        _refuse_graph(x)
        return OnGpu(x.detach().clone())

    def down(self, x: Tensor, *, non_blocking: bool = False) -> Tensor:
        """A copy of ``x`` on the CPU."""
        if not isinstance(x, OnGpu):
            return x
        if not non_blocking:
            self.wait("read")
        _refuse_graph(x)
        return _held(x.detach()).clone()

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Any]) -> Any:
        """One operation of torch with a tensor of the device among its arguments; ``given``: all of them, out of their lists."""
        short = func._schema.name.split("::")[1]
        tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
        if short not in COPIES:
            self._refuse_strangers(func, short, args, given)
        if short in READS or func.__name__ in READS:
            self.wait(short)
        elif short in INDEXING:
            masked = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
            fills = len(args) > 2 and args[2].numel() == 1  # torch takes masked_fill then
            if masked and not fills:
                self.wait("boolean index")
        elif short in COPIES and short != "_to_copy" and len({isinstance(t, OnGpu) for t in tensors}) == 2:
            pinned = all(t.is_pinned() for t in tensors if not isinstance(t, OnGpu))
            if not (pinned and (kwargs.get("non_blocking") or True in args[2:])):
                self.wait(
                    "copy" if short != "copy_" else "copy to the device" if isinstance(args[0], OnGpu) else "read"
                )
        if is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": CPU}
        out = func(*_mapped(_held, args), **{name: _mapped(_held, value) for name, value in kwargs.items()})
        owners = {id(_held(t)): t for t in tensors}  # what is written into stays who it was, and where

        def wrapped(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return owners[id(x)] if id(x) in owners else OnGpu(x)

        return _mapped(wrapped, out)

    def _refuse_strangers(self, func: Any, short: str, args: tuple[Any, ...], given: list[Any]) -> None:
        if any(isinstance(leaf, torch.Generator) for leaf in given):
            raise Mismatch(f"{func.__name__}: a generator of the CPU draws on cuda:0, at {here()}")
        plain = [leaf for leaf in given if isinstance(leaf, Tensor) and not isinstance(leaf, OnGpu)]
        if not plain or next(own_frames(sys._getframe(1)), None) is None:
            return  # autograd's engine makes some on what it takes for the tensors' device
        indices = [i for i in args[1] if i is not None] if short in INDEXING else []
        for x in plain:
            if any(x is index for index in indices):
                self.wait("copy of an index")
            elif x.dim() or short in STRICT:
                shapes = ", ".join(f"{tuple(t.shape)} {t.device}" for t in given if isinstance(t, Tensor))
                raise Mismatch(f"{func.__name__}: tensors of two devices ({shapes}), at {here()}")


GPU = Gpu()


def _refuse_graph(x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(f"no gradient goes from one device to another here, at {here()}")


def _leaves(given: Any) -> Iterator[Any]:
    for value in given:
        if isinstance(value, tuple | list):
            yield from _leaves(value)
        else:
            yield value


def _mapped(change: Callable[[Any], Any], given: Any) -> Any:
    if isinstance(given, tuple | list):
        return type(given)(_mapped(change, value) for value in given)
    return change(given)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnGpu) else x


class OnGpu(Tensor):
    """A tensor of the pretended device around one of the CPU, ``held``."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        assert not isinstance(held, OnGpu)
        made: OnGpu = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=CPU,  # to autograd's engine, which has no other
        )
        made.held = held
        return made

    def __init__(self, *given: Any) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        given = [*_leaves(args), *_leaves((kwargs or {}).values())]
        return GPU.run(func, args, kwargs or {}, given)

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        return f"OnGpu({self.held})"

    def numpy(self, *given: Any, **named: Any) -> Any:
        raise TypeError(f"a tensor of cuda:0 is no array of NumPy; copy it with cpu() first, at {here()}")

    __array__ = numpy

    def tolist(self) -> Any:
        GPU.wait("read")
        return _held(self.detach()).tolist()

    def pin_memory(self, *given: Any, **named: Any) -> Any:
        raise Mismatch(f"a tensor of cuda:0 cannot be pinned, at {here()}")

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, *given: Any, **named: Any) -> Tensor:
        GPU.wait("copy to the device")
        return OnGpu(torch.as_tensor(data, dtype=dtype or self.dtype).clone())

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made: Tensor = OnGpu(_held(self.detach()).clone())
        is_parameter = isinstance(self, torch.nn.Parameter)
        made = torch.nn.Parameter(made, self.requires_grad) if is_parameter else made.requires_grad_(self.requires_grad)
        return memo.setdefault(id(self), made)


@contextlib.contextmanager
def pretended() -> Iterator[Gpu]:
    """torch has a GPU inside, in every thread; what this one waits for is counted from now on."""
    GPU.thread = threading.get_ident()
    GPU.waits.clear()
    names = {name: getattr(torch, name) for name in FACTORIES}
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, real in names.items():
            stack.enter_context(patch.object(torch, name, _factory(name, real)))
        stack.enter_context(patch.object(torch.fft, "fftfreq", _factory("fftfreq", torch.fft.fftfreq)))
        stack.enter_context(patch.multiple(Tensor, **_moves()))
        stack.enter_context(patch.multiple(torch.cuda, **_cuda()))
        grouping = torch.nn.utils.clip_grad
        stack.enter_context(patch.object(grouping, GROUPS, _grouped(getattr(grouping, GROUPS))))
        stack.enter_context(patch.object(torch.nn.functional, "one_hot", _one_hot(torch.nn.functional.one_hot)))
        real_autocast, real_enabled = torch.autocast, torch.is_autocast_enabled

        class Autocast(real_autocast):  # type: ignore[misc, valid-type]
            def __init__(self, device_type: str, *given: Any, **named: Any) -> None:
                super().__init__(device_type.replace("cuda", "cpu"), *given, **named)

        for owner in (torch, torch.amp):
            stack.enter_context(patch.object(owner, "autocast", Autocast))
        enabled = lambda device="cpu": real_enabled("cpu")  # noqa: E731
        stack.enter_context(patch.object(torch, "is_autocast_enabled", enabled))
        dtype = torch.get_autocast_dtype
        stack.enter_context(patch.object(torch, "get_autocast_dtype", lambda device: dtype("cpu")))
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
            raise Mismatch(f"{name}: a generator of the CPU draws on cuda:0, at {here()}")
        made = real(*given, **{**named, "device": CPU})
        if isinstance(made, OnGpu):
            return made
        if name in ("tensor", "as_tensor"):
            GPU.wait("copy to the device")
        return OnGpu(made.detach()).requires_grad_(made.requires_grad)

    return make


GROUPS = "_group_tensors_by_device_and_dtype"


def _grouped(real: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
    """torch's own asks for the devices in C++."""
    return lambda tensors, *given: {
        (groups[0][0].device, dtype): (groups, places) for (_, dtype), (groups, places) in real(tensors, *given).items()
    }


def _one_hot(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch's own asks for the device in C++, where it is the CPU."""

    def one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
        if not isinstance(x, OnGpu):
            return real(x, num_classes)
        if num_classes == -1:
            GPU.wait("read")
        return OnGpu(real(x.held, num_classes))

    return one_hot


def _moves() -> dict[str, Any]:
    """The methods of all tensors that go from one device to another."""
    real_to, real_pinned = Tensor.to, Tensor.is_pinned

    def to(x: Tensor, *given: Any, **named: Any) -> Tensor:
        rest = [named.pop("other"), *given] if "other" in named else [*given]
        device, dtype, flags = named.pop("device", None), named.pop("dtype", None), []
        for value in rest:
            if isinstance(value, Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, bool):
                flags.append(value)
            elif value is not None:
                device = value
        non_blocking, copy = (
            [*flags, named.pop("non_blocking", False), False][:2]
            if flags
            else (named.pop("non_blocking", False), False)
        )
        copy = named.pop("copy", copy)
        before = x
        if device is not None and is_cuda(device):
            x = GPU.up(x, non_blocking=non_blocking)
        elif device is not None and torch.device(device).type == "cpu":
            x = GPU.down(x, non_blocking=non_blocking)
        elif device is not None:
            return real_to(x, *given, device=device, **named)  # type: ignore[call-overload]
        x = real_to(x, dtype, **named) if dtype is not None else x
        return x.clone() if copy and x is before else x

    def pin(x: Tensor, *given: Any, **named: Any) -> Tensor:
        pinned = x.clone()
        pinned._pretends_pinned = True  # type: ignore[attr-defined]
        return pinned

    return {
        "to": to,
        "cpu": lambda x, *given, **named: GPU.down(x),
        "cuda": lambda x, device=None, non_blocking=False, **named: GPU.up(x, non_blocking=non_blocking),
        "pin_memory": pin,
        "is_pinned": lambda x, *given: hasattr(x, "_pretends_pinned") or real_pinned(x),
    }


class _Event:
    """A moment on the device; who synchronises with it waits, if it has not come yet."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def record(self, *given: Any) -> None:
        pass

    def synchronize(self) -> None:
        GPU.wait("event")

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: _Event) -> float:
        return 1.0


def _cuda() -> dict[str, Any]:
    """What ``torch.cuda`` says of the device: an H100 with 80 GiB, of which a tenth is in use."""
    nothing = lambda *given, **named: None  # noqa: E731
    memory = lambda *given: 8 << 30  # noqa: E731

    class Stream:
        def __init__(self, *given: Any, **named: Any) -> None:
            self.wait_event = self.wait_stream = nothing

        def synchronize(self) -> None:
            GPU.wait("synchronize")

        def record_event(self, event: _Event | None = None) -> _Event:
            return event or _Event()

    properties = SimpleNamespace(
        total_memory=80 << 30, name="Pretended GPU", major=9, minor=0, uuid="none", multi_processor_count=132
    )
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *given: "Pretended GPU",
        "get_device_capability": lambda *given: (9, 0),
        "get_device_properties": lambda *given: properties,
        "is_bf16_supported": lambda *given, **named: True,
        "mem_get_info": lambda *given: (72 << 30, 80 << 30),
        **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), memory),
        **dict.fromkeys(
            ("set_device", "empty_cache", "reset_peak_memory_stats", "manual_seed", "manual_seed_all"), nothing
        ),
        "synchronize": lambda *given: GPU.wait("synchronize"),
        "Event": _Event,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda given: contextlib.nullcontext(),
    }
