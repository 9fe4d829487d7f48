"""Hugging Face peft's tuners as methods ``peft/NAME``: which there are, their options, and what they train. Imports no torch.

The options of ``peft/NAME`` are the fields of peft's own configuration, with its defaults, but for those that the bridge fills in
(`FILLED_IN`). They are written out here, so that a run keeps its key when peft gains an option; a test holds them against peft.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, make_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from harness.methods.configs.common import PlacedConfig
from harness.methods.parts.placement import BackboneShape, BlockShape, MethodError, parse_sites

PREFIX = "peft/"


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """One of peft's tuners.

    Args:
        paper: arXiv id, or where it is described.
        options: its configuration's fields and their defaults; a tuple is a default with its type.
        differs: reason for a default that is not peft's.
        start: why it does not start as the plain backbone; empty where it does.
        unmerged: why it is not merged, empty where it is.
        lacks: clause of the contract -> why it does not hold.
    """

    paper: str
    options: Mapping[str, Any]
    differs: str = ""
    start: str = ""
    unmerged: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)


_LORA = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False, "init_lora_weights": (True, bool | str)}

TUNERS = {
    "lora": Tuner(paper="2106.09685", options={**_LORA, "use_dora": False}),
    "adalora": Tuner(
        paper="2303.10512",
        options={
            "target_r": 8, "init_r": 12, "lora_alpha": 8, "lora_dropout": 0.0, "tinit": 0, "tfinal": 0, "deltaT": 1,
            "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.5,
        },
    ),
    "adamss": Tuner(
        paper="2410.15321",
        options={"r": 100, "num_subspaces": 5, "subspace_rank": 1, "init_weights": "orthogonal"},
    ),
    "beft": Tuner(paper="2509.15974", options={}),
    "boft": Tuner(
        paper="2311.06243",
        options={"boft_block_size": 4, "boft_block_num": 0, "boft_n_butterfly_factor": 1, "boft_dropout": 0.0},
    ),
    "c3a": Tuner(
        paper="2407.19342",
        options={"block_size": 32, "init_weights": "xavier_uniform"},
        differs="block_size=32 (peft: 256), which divides the widths of SAM, MobileSAM and ViTs",
        start="circulant kernels start at random",
    ),
    "deft": Tuner(
        paper="2509.19543",
        options={
            "r": 8, "decomposition_method": "relu", "init_scale": 1.0, "alpha": (None, int | None), "para": False,
            "deft_dropout": 0.0,
        },
    ),
    "delora": Tuner(paper="2503.18225", options={"r": 8, "delora_lambda": 15, "module_dropout": 0.0}),
    "fourierft": Tuner(
        paper="2405.03003",
        options={"n_frequency": 1000, "scaling": 150.0},
        start="spectral coefficients start at random",
    ),
    "frod": Tuner(
        paper="peft", options={"frod_dropout": 0.0, "sparse_rate": 0.01, "regularization_alpha": 0.001}
    ),
    "glora": Tuner(
        paper="2306.07967",
        options={"r": 8, "config_A_B": "lora", "config_C": "lora", "config_D_E": "constant"},
    ),
    "gralora": Tuner(
        paper="2505.20355",
        options={"r": 32, "hybrid_r": 0, "alpha": 64, "gralora_dropout": 0.0, "gralora_k": 2},
    ),
    "hira": Tuner(paper="openreview TwJrTz9cRS", options={"r": 32, "hira_dropout": 0.0}),
    "hra": Tuner(paper="2405.17484", options={"r": 8, "apply_GS": False}),
    "ia3": Tuner(paper="2205.05638", options={}),
    "lily": Tuner(
        paper="2407.09946",
        options={"r": 32, "stride_A": 1, "num_B": 2, "scaling": 1.0},
        unmerged="its router mixes projections anew for each token",
    ),
    "loha": Tuner(paper="2108.06098", options={"r": 8, "alpha": 8, "rank_dropout": 0.0, "module_dropout": 0.0}),
    "lokr": Tuner(
        paper="2309.14859",
        options={
            "r": 8, "alpha": 8, "rank_dropout": 0.0, "module_dropout": 0.0, "decompose_both": False,
            "decompose_factor": -1, "rank_dropout_scale": False,
        },
    ),
    "miss": Tuner(
        paper="2409.15371",
        options={"r": 64, "miss_dropout": 0.0, "mini_r": 1, "init_weights": (True, bool | str)},
    ),
    "oft": Tuner(
        paper="2306.07280",
        options={
            "r": 0, "oft_block_size": 32, "module_dropout": 0.0, "coft": False, "eps": 6e-5, "block_share": False,
            "use_cayley_neumann": True, "num_cayley_neumann_terms": 5,
        },
    ),
    "osf": Tuner(paper="2504.07097", options={"effective_rank": (None, int | float | None)}),
    "peanut": Tuner(paper="2410.01870", options={"r": 32, "depth": 0, "act_fn": "relu", "scaling": 1.0}),
    "psoft": Tuner(
        paper="openreview FSHrinMArK",
        options={
            "r": 32, "psoft_alpha": 32, "psoft_dropout": 0.0, "ab_svd_init": "psoft_init", "psoft_svd": "full",
            "psoft_svd_lowrank_niter": 10, "psoft_orth": True, "psoft_mag_b": True, "psoft_mag_a": True,
            "use_cayley_neumann": False, "num_cayley_neumann_terms": 5, "cayley_neumann_eps": (None, float | None),
        },
    ),
    "pvera": Tuner(
        paper="2512.07703", options={"r": 256, "pvera_dropout": 0.0, "d_initial": 0.1, "sample_at_inference": False}
    ),
    "randlora": Tuner(
        paper="2502.00987",
        options={"r": 32, "sparse": False, "very_sparse": False, "randlora_dropout": 0.0, "randlora_alpha": 640},
    ),
    "road": Tuner(
        paper="2409.00119",
        options={"variant": "road_1", "group_size": 32},
        differs="group_size=32 (peft: 64), which divides the widths of MobileSAM",
    ),
    "shira": Tuner(paper="2406.13175", options={"r": 32, "mask_type": "random"}),
    "supertuning": Tuner(
        paper="2607.09287",
        options={
            "sparsity": 0.99, "select_top": True, "r": (None, int | None), "lora_alpha": (None, float | None),
            "lora_dropout": 0.0,
        },
    ),
    "tinylora": Tuner(
        paper="2602.04118",
        options={
            "r": 2, "u": 64, "weight_tying": 0.0, "init_v_bound": 0.02, "tinylora_dropout": 0.0,
            "init_weights": (True, bool | str),
        },
    ),
    "unilora": Tuner(
        paper="2506.00799",
        options={"r": 4, "theta_d_length": 256, "unilora_dropout": 0.0, "init_theta_d_bound": 0.02},
        start="the shared vector starts at random",
    ),
    "vblora": Tuner(
        paper="2405.15179",
        options={
            "r": 4, "num_vectors": 256, "vector_length": 32, "topk": 2, "vblora_dropout": 0.0,
            "init_vector_bank_bound": 0.02, "init_logits_std": 0.1,
        },
        differs="vector_length=32 (peft: 256), which divides the widths of SAM, MobileSAM and ViTs",
        start="the shared vectors start at random",
    ),
    "vera": Tuner(paper="2310.11454", options={"r": 256, "vera_dropout": 0.0, "d_initial": 0.1}),
    "waveft": Tuner(
        paper="peft",
        options={
            "n_frequency": 2592, "scaling": 25.0, "wavelet_family": "db1", "use_idwt": True,
            "proportional_parameters": False,
        },
    ),
}  # fmt: skip
"""By name, those that apply to the linear layers of an image encoder."""

_PROMPT = "learns tokens of a language model's input, and an image encoder has none"
LEFT_OUT = {
    "adaption_prompt": "is written for LLaMA's attention",
    "cartridge": _PROMPT,
    "cpt": _PROMPT,
    "ln_tuning": "trains layer norms, which `layernorm` does here",
    "multitask_prompt_tuning": _PROMPT,
    "p_tuning": _PROMPT,
    "poly": "mixes adapters by a task's number, and a run has one task",
    "prefix_tuning": _PROMPT,
    "prompt_tuning": _PROMPT,
    "shadow": "runs a second language model beside the first",
    "trainable_tokens": "trains rows of a token embedding, and an image encoder has none",
    "xlora": "mixes trained LoRA adapters of a language model",
}
"""Tuners that do not apply, and why."""

FILLED_IN = {
    "alpha_pattern", "bias", "block_size_pattern", "exclude_modules", "fan_in_fan_out", "feedforward_modules",
    "inference_mode", "lambda_pattern", "layers_pattern", "layers_to_transform", "modules_to_save", "n_frequency_pattern",
    "progressbar", "rank_pattern", "save_indices", "save_only_topk_weights", "save_precomputed_indices", "save_projection",
    "target_modules", "target_parameters", "total_step", "use_effective_conv2d",
}  # fmt: skip
"""Fields of peft's configurations that the bridge sets or leaves alone: which layers, for how many steps, what a file holds."""
SEEDS = {"generator_seed", "proj_seed", "projection_prng_key", "projection_seed", "random_loc_seed", "random_seed"}
"""Those that it draws from the method's own generator."""


@dataclass(frozen=True, kw_only=True)
class PeftConfig(PlacedConfig):
    """A tuner of peft on linear layers of the encoder.

    Args:
        sites: which; by default q, k and v, each as a layer of its own. ``qkv`` is the fused layer whole.
    """

    tuner: ClassVar[str]

    sites: str = "q,k,v"

    def __post_init__(self) -> None:
        parse_sites(self.sites)
        options = self.options()
        if options.get("init_r", 1) <= options.get("target_r", 0):
            raise MethodError(
                "init_r must be above target_r: AdaLoRA begins with more singular values than it ends with"
            )

    def options(self) -> dict[str, Any]:
        """Those of peft's configuration."""
        return {name: value for name, value in asdict(self).items() if name in TUNERS[self.tuner].options}

    def layers(self, shape: BackboneShape) -> list[tuple[str, int, int]]:
        """(name, inputs, outputs) of every layer that it adapts."""
        return [
            (f"{module}_{part}", inputs, outputs)
            for block in self.placed(shape)
            for module, part, inputs, outputs in layers_of(block, self.sites)
        ]

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return count(self.tuner, self.options(), self.layers(shape))


def layers_of(shape: BlockShape, sites: str) -> list[tuple[str, str, int, int]]:
    """(module, part, inputs, outputs) of the layers of a block that ``sites`` names; a part is ``all`` or a slice of qkv."""
    wide, hidden, entering = shape.dim, shape.mlp_dim, shape.entering
    known = {
        "qkv": [("qkv", "all", entering, 3 * wide)],
        "proj": [("proj", "all", wide, wide)],
        "mlp": [("mlp_in", "all", wide, hidden), ("mlp_out", "all", hidden, wide)],
    }
    return [layer for site in parse_sites(sites) for layer in known.get(site, [("qkv", site, entering, wide)])]


@cache
def config_of(tuner: str) -> type[PeftConfig]:
    """The configuration class of ``peft/TUNER``."""
    entry = TUNERS[tuner]
    options = [
        (name, default[1], field(default=default[0])) if isinstance(default, tuple) else (name, type(default), default)
        for name, default in entry.options.items()
    ]
    return make_dataclass(
        tuner,
        [(name, kind, value if hasattr(value, "default") else field(default=value)) for name, kind, value in options],
        bases=(PeftConfig,),
        namespace={"tuner": tuner, "__module__": __name__, "__doc__": f"{PREFIX}{tuner} ({entry.paper})."},
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
    """Trained parameters of a tuner on layers (name, inputs, outputs): as injected into bare ones, in a process of its own where
    torch is not loaded, and then remembered on disk by peft's version.

    Raises:
        MethodError: peft refuses the options on these layers, or is not installed.
    """
    request = json.dumps([peft_version(), tuner, options, layers], sort_keys=True)
    found = _count_here(request) if "torch" in sys.modules else _count_apart(request)
    if isinstance(found, str):
        raise MethodError(f"{PREFIX}{tuner}: {found}")
    return found


@cache
def _count_here(request: str) -> int | str:
    _, tuner, options, layers = json.loads(request)
    found: int | str = import_module("harness.methods.peft").trained_parameters(tuner, options, layers)
    return found


@cache
def _count_apart(request: str) -> int | str:
    remembered = _remembered()
    if request not in remembered:
        version_, _, _, layers = json.loads(request)
        # What costs seconds is to load torch and peft: others at their defaults are counted with it.
        others = [json.dumps([version_, name, config_of(name)().options(), layers], sort_keys=True) for name in TUNERS]
        wanted = [request, *(other for other in others if other not in remembered and other != request)]
        command = [sys.executable, "-m", "harness.methods.peft"]
        done = subprocess.run(command, input=json.dumps(wanted), capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return f"cannot be counted: {last}"
        remembered |= dict(zip(wanted, json.loads(done.stdout.splitlines()[-1]), strict=True))
        with suppress(OSError):
            _FILE.parent.mkdir(parents=True, exist_ok=True)
            new = _FILE.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps(remembered))
            new.replace(_FILE)
    found: int | str = remembered[request]
    return found


_FILE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam-peft-harness" / "peft-counts.json"


def _remembered() -> dict[str, int | str]:
    try:
        found = json.loads(_FILE.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
