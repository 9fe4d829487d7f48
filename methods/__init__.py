"""What is compared: one method, one file. Importing this package imports no torch; classes load when asked for."""

from typing import NamedTuple


class MethodEntry(NamedTuple):
    """A method's class and its configuration, each as a lazy ``module:Class``, and the arXiv id of its paper."""

    method: str
    config: str
    paper: str = ""


BUILTIN = {
    "zeroshot": MethodEntry("harness.methods.zeroshot:ZeroShot", "harness.methods.configs.common:ZeroShotConfig"),
    "full": MethodEntry("harness.methods.full:Full", "harness.methods.configs.common:FullConfig"),
    "decoder": MethodEntry("harness.methods.decoder:DecoderOnly", "harness.methods.configs.common:DecoderOnlyConfig"),
    "bitfit": MethodEntry(
        "harness.methods.bitfit:BitFit", "harness.methods.configs.baselines:BitFitConfig", "2106.10199"
    ),
    "ssf": MethodEntry("harness.methods.ssf:SSF", "harness.methods.configs.baselines:SSFConfig", "2210.08823"),
    "adapter": MethodEntry(
        "harness.methods.adapter:Adapter", "harness.methods.configs.baselines:AdapterConfig", "1902.00751"
    ),
    "adaptformer": MethodEntry(
        "harness.methods.adaptformer:AdaptFormer", "harness.methods.configs.baselines:AdaptFormerConfig", "2205.13535"
    ),
    "vpt": MethodEntry("harness.methods.vpt:VPT", "harness.methods.configs.baselines:VPTConfig", "2203.12119"),
    "lst": MethodEntry("harness.methods.lst:LST", "harness.methods.configs.baselines:LSTConfig", "2206.06522"),
    "samadapter": MethodEntry(
        "harness.methods.samadapter:SAMAdapter", "harness.methods.configs.baselines:SAMAdapterConfig", "2304.09148"
    ),
    "lora": MethodEntry("harness.methods.lora:LoRA", "harness.methods.configs.lowrank:LoRAConfig", "2106.09685"),
    "dora": MethodEntry("harness.methods.dora:DoRA", "harness.methods.configs.lowrank:DoRAConfig", "2402.09353"),
    "samed": MethodEntry("harness.methods.lora:SAMed", "harness.methods.configs.lowrank:SAMedConfig", "2304.13785"),
    "convlora": MethodEntry(
        "harness.methods.convlora:ConvLoRA", "harness.methods.configs.lowrank:ConvLoRAConfig", "2401.17868"
    ),
    "naslora": MethodEntry(
        "harness.methods.naslora:NASLoRA", "harness.methods.configs.naslora:NASLoRAConfig", "2512.03499"
    ),
    "naspclora": MethodEntry(
        "harness.methods.naspclora:NASPCLoRA", "harness.methods.configs.naslora:NASPCLoRAConfig", "2512.03499"
    ),
    "layernorm": MethodEntry(
        "harness.methods.layernorm:LayerNormTuning", "harness.methods.configs.baselines:LayerNormConfig", "2304.01917"
    ),
    "mona": MethodEntry("harness.methods.mona:Mona", "harness.methods.configs.baselines:MonaConfig", "2408.08345"),
    "rein": MethodEntry("harness.methods.rein:Rein", "harness.methods.configs.baselines:ReinConfig", "2312.04265"),
    "fact": MethodEntry("harness.methods.fact:FacT", "harness.methods.configs.baselines:FacTConfig", "2212.03145"),
    "hira": MethodEntry(
        "harness.methods.hira:HiRA", "harness.methods.configs.lowrank:HiRAConfig", "openreview TwJrTz9cRS"
    ),
}
"""By name, in the order of rows: coarse baselines first, the methods under test last."""

_NAMES = (
    "lora", "adalora", "beft", "boft", "c3a", "deft", "delora", "fourierft", "frod", "glora", "gralora", "hira", "hra", "ia3",
    "lily", "loha", "lokr", "miss", "oft", "osf", "peanut", "psoft", "pvera", "randlora", "road", "shira", "supertuning",
    "tinylora", "unilora", "vblora", "vera", "waveft",
)  # fmt: skip
TUNERS = {
    f"peft/{name}": MethodEntry(f"harness.methods.peft:{name}", f"harness.methods.configs.peft:{name}")
    for name in _NAMES
}
"""Those of Hugging Face peft. They are named one by one, or all by ``peft/all``; ``all`` leaves them out."""

ALIASES = {name: f"peft/{name}" for name in ("gralora", "oft", "shira", "vera")}
"""Names that methods of this package had before peft's took their place."""


def reason_left_out(name: str) -> str:
    """Why a tuner of peft is no method here; empty for any other name."""
    from harness.methods.configs.peft import LEFT_OUT

    return LEFT_OUT.get(name.removeprefix("peft/"), "") if name.startswith("peft/") else ""
