"""What is compared: one method, one file. Importing this package imports no torch; classes load when asked for."""

from typing import NamedTuple


class MethodEntry(NamedTuple):
    """A method's class and its configuration, each as a lazy ``module:Class``."""

    method: str
    config: str


BUILTIN = {
    "full": MethodEntry("methods.full:Full", "methods.configs.common:FullConfig"),
    "decoder": MethodEntry("methods.decoder:DecoderOnly", "methods.configs.common:DecoderOnlyConfig"),
    "bitfit": MethodEntry("methods.bitfit:BitFit", "methods.configs.baselines:BitFitConfig"),
    "ssf": MethodEntry("methods.ssf:SSF", "methods.configs.baselines:SSFConfig"),
    "adapter": MethodEntry("methods.adapter:Adapter", "methods.configs.baselines:AdapterConfig"),
    "adaptformer": MethodEntry("methods.adaptformer:AdaptFormer", "methods.configs.baselines:AdaptFormerConfig"),
    "vpt": MethodEntry("methods.vpt:VPT", "methods.configs.baselines:VPTConfig"),
    "lst": MethodEntry("methods.lst:LST", "methods.configs.baselines:LSTConfig"),
    "samadapter": MethodEntry("methods.samadapter:SAMAdapter", "methods.configs.baselines:SAMAdapterConfig"),
    "lora": MethodEntry("methods.lora:LoRA", "methods.configs.lowrank:LoRAConfig"),
    "dora": MethodEntry("methods.dora:DoRA", "methods.configs.lowrank:DoRAConfig"),
    "samed": MethodEntry("methods.samed:SAMed", "methods.configs.lowrank:SAMedConfig"),
    "convlora": MethodEntry("methods.convlora:ConvLoRA", "methods.configs.lowrank:ConvLoRAConfig"),
    "naslora": MethodEntry("methods.naslora:NASLoRA", "methods.configs.naslora:NASLoRAConfig"),
    "naspclora": MethodEntry("methods.naspclora:NASPCLoRA", "methods.configs.naslora:NASPCLoRAConfig"),
    "layernorm": MethodEntry("methods.layernorm:LayerNormTuning", "methods.configs.baselines:LayerNormConfig"),
    "mona": MethodEntry("methods.mona:Mona", "methods.configs.baselines:MonaConfig"),
    "fact": MethodEntry("methods.fact:FacT", "methods.configs.baselines:FacTConfig"),
    "vera": MethodEntry("methods.vera:VeRA", "methods.configs.lowrank:VeRAConfig"),
}
"""By name, in the order of rows: coarse baselines first, the methods under test last."""
