"""What is compared: one method, one file. Importing this package imports no torch; classes load when asked for."""

from typing import NamedTuple


class Entry(NamedTuple):
    """A method's class and its configuration, each as a lazy ``module:Class``."""

    method: str
    config: str


BUILTIN = {
    "full": Entry("methods.full:Full", "methods.configs.common:FullConfig"),
    "decoder": Entry("methods.decoder:DecoderOnly", "methods.configs.common:DecoderOnlyConfig"),
    "bitfit": Entry("methods.bitfit:BitFit", "methods.configs.baselines:BitFitConfig"),
    "ssf": Entry("methods.ssf:SSF", "methods.configs.baselines:SSFConfig"),
    "adapter": Entry("methods.adapter:Adapter", "methods.configs.baselines:AdapterConfig"),
    "adaptformer": Entry("methods.adaptformer:AdaptFormer", "methods.configs.baselines:AdaptFormerConfig"),
    "vpt": Entry("methods.vpt:VPT", "methods.configs.baselines:VPTConfig"),
    "lst": Entry("methods.lst:LST", "methods.configs.baselines:LSTConfig"),
    "samadapter": Entry("methods.samadapter:SAMAdapter", "methods.configs.baselines:SAMAdapterConfig"),
    "lora": Entry("methods.lora:LoRA", "methods.configs.lowrank:LoRAConfig"),
    "dora": Entry("methods.dora:DoRA", "methods.configs.lowrank:DoRAConfig"),
    "samed": Entry("methods.samed:SAMed", "methods.configs.lowrank:SAMedConfig"),
    "convlora": Entry("methods.convlora:ConvLoRA", "methods.configs.lowrank:ConvLoRAConfig"),
    "naslora": Entry("methods.naslora:NASLoRA", "methods.configs.lowrank:NASLoRAConfig"),
    "naspclora": Entry("methods.naspclora:NASPCLoRA", "methods.configs.lowrank:NASPCLoRAConfig"),
}
"""By name, in the order of rows: coarse baselines first, the methods under test last."""
