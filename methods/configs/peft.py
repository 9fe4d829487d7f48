"""Hugging Face peft's tuners as methods ``peft/NAME``: which there are, their options, and what they train. Imports no torch.

The options of ``peft/NAME`` are the fields of peft's own configuration, with its defaults, but for those that the bridge fills in
(`FILLED_IN`). They are written out in ``tuners.yaml``, so that a run keeps its key when peft gains an option; a test holds the
table against peft.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from functools import cache, reduce
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from operator import or_
from pathlib import Path
from typing import Any, ClassVar

import yaml

from harness.methods.configs.lowrank import LinearsConfig, layers_of
from harness.methods.parts.placement import BackboneShape, MethodError, parse_sites

PREFIX = "peft/"
WHOLE = ("loha", "lokr", "fourierft", "waveft", "shira")
"""Tuners that multiply by an update of the layer's own size, forward and twice backward. For a plan's price alone."""


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """One of peft's tuners.

    Args:
        paper: arXiv id, or where it is described.
        options: its configuration's fields and their defaults; a list is a default and the types that it may have.
        differs: reason for a default that is not peft's.
        start: why it does not start as the plain backbone; empty where it does.
        unmerged: why it is not merged, empty where it is.
        one_width: why all blocks must have one width, empty where they need not.
        draws: in training it takes a random number of torch's own even for a dropout of 0.
        mixes: what it gives for a token depends on the other tokens.
        choices: option -> the values that it may have, where peft takes any.
        deviates: option -> those of them with which it does not start as the plain backbone.
        refused: what such a value begins with -> why it is not among them.
        lacks: clause of the contract -> why it does not hold.
    """

    paper: str
    options: Mapping[str, Any]
    differs: str = ""
    start: str = ""
    unmerged: str = ""
    one_width: str = ""
    draws: bool = False
    mixes: bool = False
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    deviates: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)


_TYPES: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "none": None}
_TABLE = yaml.safe_load((Path(__file__).parents[1] / "tuners.yaml").read_text(encoding="utf-8"))
TUNERS = {name: Tuner(**entry) for name, entry in _TABLE["tuners"].items()}
"""By name, those that apply to the linear layers of an image encoder."""
LEFT_OUT: dict[str, str] = _TABLE["left_out"]
"""Tuners that do not apply, and why."""

FILLED_IN = {
    "alpha_pattern", "bias", "block_size_pattern", "exclude_modules", "fan_in_fan_out", "feedforward_modules",
    "inference_mode", "lambda_pattern", "layers_pattern", "layers_to_transform", "modules_to_save", "n_frequency_pattern",
    "progressbar", "rank_pattern", "save_indices", "save_only_topk_weights", "save_precomputed_indices", "save_projection",
    "target_modules", "target_parameters", "total_step", "use_effective_conv2d",
}  # fmt: skip
"""Fields of peft's configurations that the bridge sets or leaves alone: which layers, for how many steps, what a file holds."""
SEEDS = {"generator_seed", "proj_seed", "projection_prng_key", "projection_seed", "random_loc_seed", "random_seed"}
"""Those that the bridge fills from the method's own generator."""


@dataclass(frozen=True, kw_only=True)
class PeftConfig(LinearsConfig):
    """A tuner of peft on linear layers of the encoder.

    Args:
        sites: which; by default q, k and v, each as a layer of its own. ``qkv`` is the fused layer whole.
    """

    tuner: ClassVar[str]

    sites: str = "q,k,v"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_sites(self.sites)
        for name, known in TUNERS[self.tuner].choices.items():
            value = {"true": True, "false": False}.get(getattr(self, name), getattr(self, name))
            object.__setattr__(self, name, value)
            if value not in known:
                reasons = (why for start, why in TUNERS[self.tuner].refused.items() if str(value).startswith(start))
                reason = next(reasons, f"choose {' or '.join(map(_spelt, known))}")
                raise MethodError(f"{name}={_spelt(value)}: {reason}")
        if reason := _fault(self.tuner, self.options()):
            raise MethodError(reason)

    @property
    def identity_at_init(self) -> bool:
        """Whether it starts as the plain backbone."""
        entry = TUNERS[self.tuner]
        return not entry.start and all(getattr(self, name) not in values for name, values in entry.deviates.items())

    def options(self) -> dict[str, Any]:
        """Those of peft's configuration."""
        return {name: value for name, value in asdict(self).items() if name in TUNERS[self.tuner].options}

    def layers(self, shape: BackboneShape) -> list[tuple[str, int, int]]:
        """(name, inputs, outputs) of every layer that it adapts, such as ``0.q``."""
        return [
            (f"{index}.{part}", inputs, outputs)
            for index, block in enumerate(self.placed(shape))
            for _, part, inputs, outputs in layers_of(block, self.sites)
        ]

    def encoder_parameters(self, shape: BackboneShape) -> int:
        if reason := TUNERS[self.tuner].one_width:
            shape.require_one_width(PREFIX + self.tuner, reason)
        if not (number := count(self.tuner, self.options(), self.layers(shape))):
            raise MethodError(f"{PREFIX}{self.tuner}: with these options nothing in the encoder trains")
        return number


_FACTORS = ("alpha", "d_initial", "delora_lambda", "lora_alpha", "psoft_alpha", "randlora_alpha", "scaling")
"""Options that multiply what is learnt."""


def _fault(tuner: str, options: Mapping[str, Any]) -> str:
    """Why a tuner does not do what these options say, where peft takes them all the same; empty where it does."""
    if options.get("init_r", 1) <= options.get("target_r", 0):
        return "init_r must be above target_r: AdaLoRA begins with more singular values than it ends with"
    if tuner == "hra" and options["r"] % 2:
        return f"r={options['r']} must be even: reflections come in pairs, which cancel at the start"
    if tuner == "vblora" and options["topk"] > options["num_vectors"]:
        return f"topk={options['topk']} must not be above num_vectors={options['num_vectors']}"
    if isinstance(rank := options.get("effective_rank"), float) and not 0 < rank < 1:
        return f"effective_rank={rank} must be a whole number, or a share of the ranks between 0 and 1"
    zero = next((name for name in _FACTORS if options.get(name) == 0), "")
    return f"{zero}=0 multiplies all that is learnt; take another number" if zero else ""


def _spelt(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def config_of(tuner: str) -> type[PeftConfig]:
    """The configuration class of ``peft/TUNER``."""
    entry = TUNERS[tuner]
    typed = {
        name: default if isinstance(default, list) else [default, type(default).__name__]
        for name, default in entry.options.items()
    }
    return make_dataclass(
        tuner,
        [(name, reduce(or_, map(_TYPES.__getitem__, kinds)), value) for name, (value, *kinds) in typed.items()],
        bases=(PeftConfig,),
        namespace={
            "tuner": tuner,
            "__module__": __name__,
            "__doc__": f"{PREFIX}{tuner} ({entry.paper}).",
            "weight_products": 3 if tuner in WHOLE else 0,
        },
        frozen=True,
        kw_only=True,
    )


def __getattr__(name: str) -> Any:
    if name in TUNERS:
        return config_of(name)
    raise AttributeError(name)


def peft_version() -> str:
    """Raises `MethodError` where peft is not installed."""
    try:
        return version("peft")
    except PackageNotFoundError:
        raise MethodError("peft/NAME needs peft: pip install 'sam-peft-harness[peft]'") from None


def count(tuner: str, options: Mapping[str, Any], layers: Sequence[tuple[str, int, int]]) -> int:
    """Trained parameters of a tuner on layers (name, inputs, outputs): as peft injects it into bare ones. Loads torch and peft.

    Raises:
        MethodError: peft refuses the options on these layers, or is not installed.
    """
    peft_version()
    return _counted(tuner, json.dumps(options, sort_keys=True), tuple(layers))


@cache
def _counted(tuner: str, options: str, layers: tuple[tuple[str, int, int], ...]) -> int:
    number: int = import_module("harness.methods.peft").trained_parameters(tuner, json.loads(options), layers)
    return number
