"""What is compared: one method, one file. Importing this package imports no torch; classes load when asked for."""

from typing import NamedTuple


class MethodEntry(NamedTuple):
    """A method's class and its configuration, each as a lazy ``module:Class``."""

    method: str
    config: str


BUILTIN = {
    "zeroshot": MethodEntry("harness.methods.zeroshot:ZeroShot", "harness.methods.configs.common:ZeroShotConfig"),
    "full": MethodEntry("harness.methods.full:Full", "harness.methods.configs.common:FullConfig"),
    "decoder": MethodEntry("harness.methods.decoder:DecoderOnly", "harness.methods.configs.common:DecoderOnlyConfig"),
    "bitfit": MethodEntry("harness.methods.bitfit:BitFit", "harness.methods.configs.baselines:BitFitConfig"),
    "ssf": MethodEntry("harness.methods.ssf:SSF", "harness.methods.configs.baselines:SSFConfig"),
    "adapter": MethodEntry("harness.methods.adapter:Adapter", "harness.methods.configs.baselines:AdapterConfig"),
    "adaptformer": MethodEntry(
        "harness.methods.adaptformer:AdaptFormer", "harness.methods.configs.baselines:AdaptFormerConfig"
    ),
    "vpt": MethodEntry("harness.methods.vpt:VPT", "harness.methods.configs.baselines:VPTConfig"),
    "lst": MethodEntry("harness.methods.lst:LST", "harness.methods.configs.baselines:LSTConfig"),
    "samadapter": MethodEntry(
        "harness.methods.samadapter:SAMAdapter", "harness.methods.configs.baselines:SAMAdapterConfig"
    ),
    "lora": MethodEntry("harness.methods.lora:LoRA", "harness.methods.configs.lowrank:LoRAConfig"),
    "dora": MethodEntry("harness.methods.dora:DoRA", "harness.methods.configs.lowrank:DoRAConfig"),
    "samed": MethodEntry("harness.methods.samed:SAMed", "harness.methods.configs.lowrank:SAMedConfig"),
    "convlora": MethodEntry("harness.methods.convlora:ConvLoRA", "harness.methods.configs.lowrank:ConvLoRAConfig"),
    "naslora": MethodEntry("harness.methods.naslora:NASLoRA", "harness.methods.configs.naslora:NASLoRAConfig"),
    "naspclora": MethodEntry("harness.methods.naspclora:NASPCLoRA", "harness.methods.configs.naslora:NASPCLoRAConfig"),
    "layernorm": MethodEntry(
        "harness.methods.layernorm:LayerNormTuning", "harness.methods.configs.baselines:LayerNormConfig"
    ),
    "mona": MethodEntry("harness.methods.mona:Mona", "harness.methods.configs.baselines:MonaConfig"),
    "fact": MethodEntry("harness.methods.fact:FacT", "harness.methods.configs.baselines:FacTConfig"),
    "vera": MethodEntry("harness.methods.vera:VeRA", "harness.methods.configs.lowrank:VeRAConfig"),
    "oft": MethodEntry("harness.methods.oft:OFT", "harness.methods.configs.lowrank:OFTConfig"),
    "shira": MethodEntry("harness.methods.shira:SHiRA", "harness.methods.configs.lowrank:SHiRAConfig"),
    "gralora": MethodEntry("harness.methods.gralora:GraLoRA", "harness.methods.configs.lowrank:GraLoRAConfig"),
    "hira": MethodEntry("harness.methods.hira:HiRA", "harness.methods.configs.lowrank:HiRAConfig"),
}
"""By name, in the order of rows: coarse baselines first, the methods under test last."""

TUNERS = {
    f"peft/{name}": MethodEntry(f"harness.methods.peft:{name}", f"harness.methods.configs.peft:{name}")
    for name in (
        "lora", "adalora", "adamss", "beft", "boft", "c3a", "deft", "delora", "fourierft", "frod", "glora", "gralora", "hira",
        "hra", "ia3", "lily", "loha", "lokr", "miss", "oft", "osf", "peanut", "psoft", "pvera", "randlora", "road", "shira",
        "supertuning", "tinylora", "unilora", "vblora", "vera", "waveft",
    )
}  # fmt: skip
"""Those of Hugging Face peft. They are named one by one, or all by ``peft/all``; ``all`` leaves them out."""
