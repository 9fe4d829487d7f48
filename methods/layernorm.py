"""LayerNorm tuning (LN-Tune, 2304.01917): only the scales and shifts of the encoder's norms train.

Nothing is inserted: what trains is the backbone's own, so the model is its own merge. Deviation: in SAM the two norms of
the neck train as well, unless ``outside=False``; the paper's ViT has none. Batch norms (TinyViT) stay as they are.
"""

from __future__ import annotations

from torch import nn

from harness.methods.bitfit import BitFit
from harness.methods.configs import LayerNormConfig


class LayerNormTuning(BitFit):
    """LayerNorm tuning; see the module."""

    name = "layernorm"
    config_class = LayerNormConfig

    def _trains(self, module: nn.Module, name: str) -> bool:
        # A scale is the one weight with a single axis, whatever the class of the norm (SAM's neck has its own).
        weight = getattr(module, "weight", None)
        return isinstance(weight, nn.Parameter) and weight.dim() == 1 and not hasattr(module, "running_mean")
