"""What a user may set in each method, its default with where it comes from, and what it costs in trainable parameters.

Free of torch: planning a thousand runs reads this package and builds no model. ``encoder_parameters`` is the closed form
that the contract tests hold against the attached model.
"""

from harness.methods.configs.baselines import (
    AdapterConfig,
    AdaptFormerConfig,
    BitFitConfig,
    FacTConfig,
    LayerNormConfig,
    LSTConfig,
    MonaConfig,
    ReinConfig,
    SAMAdapterConfig,
    SSFConfig,
    VPTConfig,
)
from harness.methods.configs.common import (
    DecoderOnlyConfig,
    FullConfig,
    MethodConfig,
    PlacedConfig,
    ZeroShotConfig,
    require_choice,
    require_positive,
    require_whole,
)
from harness.methods.configs.lowrank import (
    ConvLoRAConfig,
    LoRAConfig,
    LowRankConfig,
    SAMedConfig,
    site_widths,
)
from harness.methods.configs.naslora import NASLoRAConfig, NASPCLoRAConfig

__all__ = [
    "AdaptFormerConfig",
    "AdapterConfig",
    "BitFitConfig",
    "ConvLoRAConfig",
    "DecoderOnlyConfig",
    "FacTConfig",
    "FullConfig",
    "LSTConfig",
    "LayerNormConfig",
    "LoRAConfig",
    "LowRankConfig",
    "MethodConfig",
    "MonaConfig",
    "NASLoRAConfig",
    "NASPCLoRAConfig",
    "PlacedConfig",
    "ReinConfig",
    "SAMAdapterConfig",
    "SAMedConfig",
    "SSFConfig",
    "VPTConfig",
    "ZeroShotConfig",
    "require_choice",
    "require_positive",
    "require_whole",
    "site_widths",
]
