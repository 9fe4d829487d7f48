"""What is compared: one method, one file. Importing this package imports no torch; classes load when used."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple


class MethodEntry(NamedTuple):
    """A built-in method: its class as a lazy ``module:Class``, the arXiv id of its paper, and what trains: parts of its ``own``, the mask
    ``decoder`` alone, or ``nothing``. A test checks the last against the class."""

    where: str
    paper: str = ""
    trains: Literal["own", "decoder", "nothing"] = "own"


def _entry(where: str, paper: str = "", **more: Any) -> MethodEntry:
    return MethodEntry(f"harness.methods.{where}", paper, **more)


BUILTIN = {
    "zeroshot": _entry("plain:ZeroShot", trains="nothing"),
    "full": _entry("plain:Full"),
    "decoder": _entry("plain:DecoderOnly", trains="decoder"),
    "bitfit": _entry("bitfit:BitFit", "2106.10199"),
    "ssf": _entry("ssf:SSF", "2210.08823"),
    "adapter": _entry("adapter:Adapter", "1902.00751"),
    "adaptformer": _entry("adaptformer:AdaptFormer", "2205.13535"),
    "vpt": _entry("vpt:VPT", "2203.12119"),
    "lst": _entry("lst:LST", "2206.06522"),
    "samadapter": _entry("samadapter:SAMAdapter", "2304.09148"),
    "lora": _entry("lora:LoRA", "2106.09685"),
    "dora": _entry("dora:DoRA", "2402.09353"),
    "samed": _entry("lora:SAMed", "2304.13785"),
    "convlora": _entry("convlora:ConvLoRA", "2401.17868"),
    "naslora": _entry("naslora:NASLoRA", "2512.03499"),
    "naspclora": _entry("naslora:NASPCLoRA", "2512.03499"),
    "layernorm": _entry("bitfit:LayerNormTuning", "2304.01917"),
    "mona": _entry("mona:Mona", "2408.08345"),
    "convpass": _entry("convpass:Convpass", "2207.07039"),
    "rein": _entry("rein:Rein", "2312.04265"),
    "fact": _entry("fact:FacT", "2212.03145"),
    "hira": _entry("hira:HiRA", "openreview TwJrTz9cRS"),
}
"""By name, in the order of rows: coarse baselines first, the methods under test last."""

_NAMES = (
    "lora", "adalora", "beft", "boft", "c3a", "deft", "delora", "fourierft", "frod", "glora", "gralora", "hira", "hra", "ia3",
    "lily", "loha", "lokr", "miss", "oft", "osf", "peanut", "psoft", "pvera", "randlora", "road", "shira", "supertuning",
    "tinylora", "unilora", "vblora", "vera", "waveft",
)  # fmt: skip
PEFT_METHODS = {f"peft/{name}": _entry(f"peft:{name}") for name in _NAMES}
"""The tuners of Hugging Face peft. They are named one by one, or together as ``peft/all``; ``all`` does not include them."""

ALIASES = {name: f"peft/{name}" for name in ("gralora", "oft", "shira", "vera")}
"""Names under which some of peft's tuners were offered before."""


def reason_left_out(name: str) -> str:
    """Why a tuner of peft is not offered as a method; empty for any other name."""
    return str(tuners()["left_out"].get(name.removeprefix("peft/"), "")) if name.startswith("peft/") else ""


@cache
def tuners() -> dict[str, Any]:
    """The content of ``tuners.yaml``: the tuners of peft that are methods, and those that are left out with the reason."""
    import yaml

    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "tuners.yaml").read_text("utf-8"))
    return content


@cache
def default_options(name: str) -> dict[str, Any]:
    """Every option of a built-in method, or of a tuner of peft, with its default as JSON has it; empty for any other name.

    Keys of runs depend on these files and not on the classes; a test checks that the two agree.
    """
    built_in: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "defaults.json").read_text("utf-8"))
    entry = tuners()["tuners"].get(name.removeprefix("peft/")) if name.startswith("peft/") else None
    if entry is None:
        return built_in.get(name, {})
    options = {option: value[0] if isinstance(value, list) else value for option, value in entry["options"].items()}
    return {"lr": None, "blocks": "all", "sites": "q,k,v", **options}
