"""NAS-PC-LoRA (2512.03499): NAS-LoRA whose cell sees a part P of the bottleneck's channels, the others bypass it
(PC-DARTS, 1907.05737).

P = 2/3, that is 2 of 3 channels. Which channels, and why none are shuffled: see `harness.methods.parts.cell.CellOnTokens`.
"""

from __future__ import annotations

from harness.methods.configs import NASPCLoRAConfig
from harness.methods.naslora import NASLoRA


class NASPCLoRA(NASLoRA):
    """NAS-LoRA on partial channels; see the module."""

    name = "naspclora"
    config_class = NASPCLoRAConfig
