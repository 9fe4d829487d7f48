"""Copies of a segmenter that cost less than building or training it again."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from types import MethodType
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T")


def copier(thing: T) -> Callable[[], T] | None:
    """What gives copies of ``thing`` that share nothing with it or with each other: modules, attributes and references
    between them, without gradients and graphs.

    Args:
        thing: modules and what refers to them; from now on the copies' own, not to be changed.

    Returns:
        None where a copy would not be whole: a hook or another function made at run time belongs to the original, and so do
        a tensor's views and what hangs on it.
    """
    file = io.BytesIO()
    packer = _Packer(file, protocol=pickle.HIGHEST_PROTOCOL)
    try:
        packer.dump(thing)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError):
        return None
    tensors = packer.tensors.values()
    filled = [tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()]
    if len(set(filled)) < len(filled) or any(map(_carries_more, tensors)):
        return None
    packed = file.getvalue()
    return lambda: _Unpacker(packed, packer.tensors).load()


def _carries_more(tensor: Tensor) -> bool:
    """Whether something hangs on it that a copy of its values would lack."""
    return bool(vars(tensor) or tensor._backward_hooks or tensor._post_accumulate_grad_hooks)


class _Packer(pickle.Pickler):
    """Pickles everything but tensors, which it keeps aside."""

    def __init__(self, file: io.BytesIO, *, protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        self.tensors: dict[int, Tensor] = {}

    def persistent_id(self, obj: object) -> int | None:
        if isinstance(obj, MethodType):  # by name alone, which may be that of another in the class
            raise TypeError(f"{obj.__name__} is bound to the original")
        if not isinstance(obj, Tensor):
            return None
        self.tensors[id(obj)] = obj
        return id(obj)


class _Unpacker(pickle.Unpickler):
    """Unpickles what `_Packer` pickled, with a copy of each tensor."""

    def __init__(self, packed: bytes, tensors: dict[int, Tensor]) -> None:
        super().__init__(io.BytesIO(packed))
        self._tensors = tensors
        self._copies: dict[int, Tensor] = {}

    def persistent_load(self, pid: int) -> Tensor:
        if pid not in self._copies:
            tensor = self._tensors[pid]
            values = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                values = type(tensor)(values, tensor.requires_grad)
            elif tensor.is_leaf:
                values.requires_grad_(tensor.requires_grad)
            self._copies[pid] = values
        return self._copies[pid]
