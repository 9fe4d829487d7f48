"""SAMed (2304.13785): LoRA of rank 4 on the query and value slices of every block, without α/r scaling (α equals r).

Everything else is LoRA's; deviation: the mask decoder trains as for every method of this comparison (SAMed tunes it
whole, with prompts).
"""

from __future__ import annotations

from harness.methods.configs import SAMedConfig
from harness.methods.lora import LoRA


class SAMed(LoRA):
    """LoRA under SAMed's placement; see the module."""

    name = "samed"
    config_class = SAMedConfig
