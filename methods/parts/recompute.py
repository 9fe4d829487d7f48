"""Activation checkpointing runs a forward pass again inside the backward pass; what a layer remembers of a step must
not count it twice.
"""

from __future__ import annotations

import torch


def recomputing() -> bool:
    """Whether this forward pass is the recomputation of an earlier one, that is, runs inside a backward pass."""
    return torch._C._current_graph_task_id() != -1
