"""What is compared: one method, one file. Importing this package imports no torch; classes load when used."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple


class MethodEntry(NamedTuple):
    """A method's class and its configuration, each as a lazy ``module:Class``, and the arXiv id of its paper."""

    method: str
    config: str
    paper: str = ""


def _entry(method: str, config: str, paper: str = "") -> MethodEntry:
    return MethodEntry(f"harness.methods.{method}", f"harness.methods.configs{config}", paper)


BUILTIN = {
    "zeroshot": _entry("plain:ZeroShot", ":ZeroShotConfig"),
    "full": _entry("plain:Full", ":FullConfig"),
    "decoder": _entry("plain:DecoderOnly", ":DecoderOnlyConfig"),
    "bitfit": _entry("bitfit:BitFit", ".baselines:BitFitConfig", "2106.10199"),
    "ssf": _entry("ssf:SSF", ".baselines:SSFConfig", "2210.08823"),
    "adapter": _entry("adapter:Adapter", ".baselines:AdapterConfig", "1902.00751"),
    "adaptformer": _entry("adaptformer:AdaptFormer", ".baselines:AdaptFormerConfig", "2205.13535"),
    "vpt": _entry("vpt:VPT", ".baselines:VPTConfig", "2203.12119"),
    "lst": _entry("lst:LST", ".baselines:LSTConfig", "2206.06522"),
    "samadapter": _entry("samadapter:SAMAdapter", ".baselines:SAMAdapterConfig", "2304.09148"),
    "lora": _entry("lora:LoRA", ".lowrank:LoRAConfig", "2106.09685"),
    "dora": _entry("dora:DoRA", ".lowrank:DoRAConfig", "2402.09353"),
    "samed": _entry("lora:SAMed", ".lowrank:SAMedConfig", "2304.13785"),
    "convlora": _entry("convlora:ConvLoRA", ".lowrank:ConvLoRAConfig", "2401.17868"),
    "naslora": _entry("naslora:NASLoRA", ".naslora:NASLoRAConfig", "2512.03499"),
    "naspclora": _entry("naslora:NASPCLoRA", ".naslora:NASPCLoRAConfig", "2512.03499"),
    "layernorm": _entry("bitfit:LayerNormTuning", ".baselines:LayerNormConfig", "2304.01917"),
    "mona": _entry("mona:Mona", ".baselines:MonaConfig", "2408.08345"),
    "convpass": _entry("convpass:Convpass", ".baselines:ConvpassConfig", "2207.07039"),
    "rein": _entry("rein:Rein", ".baselines:ReinConfig", "2312.04265"),
    "fact": _entry("fact:FacT", ".baselines:FacTConfig", "2212.03145"),
    "hira": _entry("hira:HiRA", ".lowrank:HiRAConfig", "openreview TwJrTz9cRS"),
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
"""Older names of methods that are peft's."""


def reason_left_out(name: str) -> str:
    """Why a tuner of peft is no method here; empty for any other name."""
    from harness.methods.configs.peft import LEFT_OUT

    return LEFT_OUT.get(name.removeprefix("peft/"), "") if name.startswith("peft/") else ""


@cache
def default_options(name: str) -> dict[str, Any]:
    """Every option of a built-in method, or of a tuner of peft, with its default as JSON has it; empty for any other name.

    Keys of runs stand on these files and not on the classes, which a test holds against them.
    """
    from harness.methods.configs.peft import TUNERS as TABLE

    built_in: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "defaults.json").read_text("utf-8"))
    if (tuner := name.removeprefix("peft/")) == name or tuner not in TABLE:
        return built_in.get(name, {})
    options = {option: value[0] if isinstance(value, list) else value for option, value in TABLE[tuner].options.items()}
    return {"lr": None, "blocks": "all", "sites": "q,k,v", **options}
