"""Hugging Face peft's tuners as methods: ``peft/miss``, ``peft/lokr[r=4]``, …

The options of ``peft/NAME`` are the fields of peft's own configuration, with its defaults, except for those that the bridge fills in.
They are written out in ``tuners.yaml``, so that a run keeps its key when peft gains an option; a test compares the table with peft.

Each layer that a tuner changes becomes a `Parts`: its linear layers as peft wants them, with their weights copied and frozen. A fused
layer becomes three, q, k and v. A merge lets peft fold its update into each and joins them, under the backbone's own names.
Deviations: outputs come back in autocast's precision, as those of a plain layer do; a map of tokens reaches a tuner as a sequence.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from functools import cache, partial, reduce
from operator import or_
from typing import Any, ClassVar

try:
    import peft
except ModuleNotFoundError as error:
    raise ImportError("methods peft/NAME need peft: pip install 'sam-peft-harness[peft]'") from error
import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from harness.methods import tuners
from harness.methods.base import MergeMode
from harness.methods.linears import LinearMethod, LinearsConfig, layers_of
from harness.methods.parts.merging import MergeReport
from harness.methods.parts.placement import BackboneShape, MethodError, parse_sites
from harness.methods.parts.sites import SLICES, Adaptable

_KINDS = {kind.value.lower(): kind for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
_ADAPTER = "default"

_PREFIX = "peft/"
WHOLE = ("loha", "lokr", "fourierft", "waveft", "shira")
"""Tuners that multiply by an update of the layer's own size, forward and twice backward. Used only for a plan's price."""


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
        draws: in training it draws from torch's own generator even for a dropout of 0.
        mixes: its output for a token depends on the other tokens.
        choices: option -> the values that it may have, where peft takes any.
        deviates: option -> those values with which it does not start as the plain backbone.
        refused: beginning of other values -> why they are not among the choices.
        least: option -> its least value; ``r`` is at least 1 where it is not named.
        nonzero: options that scale what is learnt, or its gradient at the start.
        lacks: clause of the contract that it does not fulfil -> why.
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
    least: Mapping[str, int] = field(default_factory=dict)
    nonzero: Sequence[str] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)


_TYPES: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "none": None}
TUNERS = {name: Tuner(**entry) for name, entry in tuners()["tuners"].items()}
"""By name, those that apply to the linear layers of an image encoder."""
SEEDS = {"generator_seed", "proj_seed", "projection_prng_key", "projection_seed", "random_loc_seed", "random_seed"}
"""Fields of peft's configurations that the bridge fills from the method's own generator."""


@dataclass(frozen=True, kw_only=True)
class PeftConfig(LinearsConfig):
    """A tuner of peft on linear layers of the encoder.

    Args:
        sites: which linears; by default q, k and v, each as a layer of its own. ``qkv`` is the fused layer whole.
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
        """The options of peft's configuration."""
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
            shape.require_one_width(_PREFIX + self.tuner, reason)
        if not (number := trained_parameters(self.tuner, self.options(), self.layers(shape))):
            raise MethodError(f"{_PREFIX}{self.tuner}: with these options nothing in the encoder trains")
        return number


def _fault(tuner: str, options: Mapping[str, Any]) -> str:
    """Why a tuner does not do what these options say, although peft takes them; empty where it does."""
    if options.get("init_r", 1) <= options.get("target_r", 0):
        return "init_r must be above target_r: AdaLoRA begins with more singular values than it ends with"
    for name, least in {"r": 1, **TUNERS[tuner].least}.items():
        if isinstance(value := options.get(name), int) and value < least:
            return f"{name}={value} must be {least} or more"
    if tuner == "hra" and options["r"] % 2:
        return f"r={options['r']} must be even: reflections come in pairs, which cancel at the start"
    if tuner == "vblora" and options["topk"] > options["num_vectors"]:
        return f"topk={options['topk']} must not be above num_vectors={options['num_vectors']}"
    if isinstance(rank := options.get("effective_rank"), float) and not 0 < rank < 1:
        return f"effective_rank={rank} must be a whole number, or a share of the ranks between 0 and 1"
    if beta := next((name for name in ("beta1", "beta2") if not 0 < options.get(name, 0.5) < 1), ""):
        return f"{beta}={options[beta]} must be between 0 and 1"
    if dropout := next(
        (name for name, value in options.items() if name.endswith("dropout") and not 0 <= value < 1), ""
    ):
        return f"{dropout}={options[dropout]} must be at least 0 and less than 1"
    zero = next((name for name in TUNERS[tuner].nonzero if options[name] == 0), "")
    return f"{zero}=0: nothing would be learnt; take another number" if zero else ""


def _spelt(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def tuner_config(tuner: str) -> type[PeftConfig]:
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
            "__doc__": f"{_PREFIX}{tuner} ({entry.paper}).",
            "weight_products": 3 if tuner in WHOLE else 0,
        },
        frozen=True,
        kw_only=True,
    )


class Parts(nn.Module):
    """A linear layer split into several, each of which gives some of its outputs.

    Args:
        base: the backbone's own layer.
        rows: by part, which outputs it gives; together all, each once.
        heads: number of groups of outputs in each of which the parts follow one another.
        quiet: never switch the parts to training mode.
        tokens_alone: the output for a token depends on no other token.
    """

    def __init__(
        self,
        base: nn.Linear,
        rows: Mapping[str, Tensor],
        *,
        heads: int = 1,
        quiet: bool = False,
        tokens_alone: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.quiet, self.tokens_alone = heads, quiet, tokens_alone
        self.parts = nn.ModuleDict()
        for name, chosen in rows.items():
            outputs = chosen.to(base.weight.device)
            bias = None if base.bias is None else base.bias.detach()[outputs]
            self.parts[name] = _frozen(base.weight.detach()[outputs], bias)

    def train(self, mode: bool = True) -> Parts:  # noqa: FBT001, FBT002 - torch's signature
        super().train(mode)
        self.parts.train(mode and not self.quiet)
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        flat = tokens.flatten(1, -2) if tokens.ndim > 3 else tokens  # some take a map for an image
        joined = self._joined([part(flat) for part in self.parts.values()])
        if torch.is_autocast_enabled(tokens.device.type):
            joined = joined.to(torch.get_autocast_dtype(tokens.device.type))
        return joined.view(*tokens.shape[:-1], -1)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """(…, outputs) of the whole layer from the outputs of its parts. An index would order them too, but is slow in backward."""
        if len(parts) == 1:
            return parts[0]
        return torch.stack([part.unflatten(-1, (self.heads, -1)) for part in parts], dim=-2).flatten(-3)

    @property
    def adapters(self) -> dict[str, BaseTunerLayer]:
        """The parts that a tuner changes."""
        return {name: part for name, part in self.parts.items() if isinstance(part, BaseTunerLayer)}

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """One layer, with what peft merges into the parts."""
        for adapter in self.adapters.values():
            adapter.merge()
        layers: Any = {**self.parts, **{name: part.get_base_layer() for name, part in self.adapters.items()}}.values()
        biases = [layer.bias for layer in layers]
        bias = None if biases[0] is None else self._joined(biases)
        return _frozen(self._joined([layer.weight.T for layer in layers]).T, bias)


def _frozen(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of these weights, without drawing random ones first."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return layer


def split(model: nn.Module) -> nn.Module:
    """``model``, a transformers ``SamModel``, with q, k and v of every fused ``qkv`` apart, in place, so that peft can load an adapter
    of slices into it."""
    for owner in list(model.modules()):
        base = getattr(owner, "qkv", None)
        if isinstance(base, nn.Linear):
            owner.qkv = Parts(base, dict(zip("qkv", torch.arange(base.out_features).chunk(3), strict=True)))
    return model


class _Holder(nn.Module):
    """The model that peft sees: layers by block and part, since some tuners share state between layers of one name."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.config = {"model_type": "custom"}
        blocks = dict.fromkeys(name.partition(".")[0] for name in layers)
        self.layers = nn.ModuleDict({block: nn.ModuleDict() for block in blocks})
        for name, layer in layers.items():
            block, _, part = name.partition(".")
            self.layers.get_submodule(block).register_module(part, layer)


def inject(
    tuner: str, options: Mapping[str, Any], layers: Mapping[str, nn.Linear], *, generator: torch.Generator
) -> BaseTuner:
    """Let peft replace ``layers`` by its own, which are then in ``model.layers`` of the result.

    Args:
        tuner: its name in `TUNERS`.
        options: fields of peft's configuration.
        layers: frozen, by names such as ``0.q``.
        generator: every initial value follows from it.

    Raises:
        MethodError: peft refuses the options on these layers; the message is peft's.
        RuntimeError: its start is computed from weights, and those on the meta device have no values.
    """
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[_KINDS[tuner]]
    parts = sorted({name.partition(".")[2] for name in layers})
    filled: dict[str, Any] = {
        "target_modules": parts,
        "feedforward_modules": [part for part in parts if part == "mlp_out"],
        "progressbar": False,
        "save_indices": True,
        "total_step": 10**9,  # until a run sets it
    }
    for name in sorted(SEEDS & config_class.__dataclass_fields__.keys()):
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        if tuner != "frod":  # it makes part of its start from the weights alone, which no state holds
            filled[name] = seed
    known = {name: value for name, value in filled.items() if name in config_class.__dataclass_fields__}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(int(torch.randint(2**31 - 1, (), generator=generator)))
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Invalid `")  # peft would replace the value that was given
        if options.get("boft_n_butterfly_factor", 1) != 1:
            warnings.filterwarnings("error", message="Setting boft_n_butterfly_factor")
        try:
            config = config_class(**known | dict(options))
            model: BaseTuner = peft.PEFT_TYPE_TO_TUNER_MAPPING[_KINDS[tuner]](_Holder(layers), config, _ADAPTER)
        except (ValueError, TypeError, AssertionError, RuntimeError, UserWarning) as error:
            if isinstance(error, RuntimeError) and any(layer.weight.is_meta for layer in layers.values()):
                raise
            raise MethodError(f"{_PREFIX}{tuner}: {' '.join(str(error).split()) or type(error).__name__}") from error
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            _keep_in_state(layer)
    return model


def _keep_in_state(layer: Any) -> None:
    """Make buffers of the tensors that peft keeps in plain dictionaries, so that a state holds them, and of AdaLoRA's ``ranknum``,
    which nothing trains."""
    for name, kept in [*vars(layer).items(), ("ranknum", getattr(layer, "ranknum", None))]:
        if isinstance(kept, dict | nn.ParameterDict) and not name.startswith("_"):
            tensors = {key: value.detach() for key, value in kept.items() if isinstance(value, Tensor)}
            if tensors and len(tensors) == len(kept):
                delattr(layer, name)
                setattr(layer, name, BufferDict(tensors, persistent=True))


def trained_parameters(tuner: str, options: Mapping[str, Any], layers: Sequence[tuple[str, int, int]]) -> int:
    """Parameters that a tuner trains on layers (name, inputs, outputs). Raises MethodError: peft refuses the options on these layers."""
    if peft.PEFT_TYPE_TO_TUNER_MAPPING[_KINDS[tuner]].uses_shared_state or tuner == "lily":
        groups = Counter([tuple((name, inputs, outputs) for name, inputs, outputs in layers)])
    else:  # layers of one size have equally many
        groups = Counter(((f"0.{'mlp_out' if n.endswith('.mlp_out') else 'q'}", i, o),) for n, i, o in layers)
    return sum(number * _trained(tuner, options, group) for group, number in groups.items())


def _trained(tuner: str, options: Mapping[str, Any], layers: Sequence[tuple[str, int, int]]) -> int:
    def made(device: str) -> nn.Module:
        bare = {n: _frozen(torch.ones(o, i, device=device), torch.ones(o, device=device)) for n, i, o in layers}
        return inject(tuner, options, bare, generator=torch.Generator().manual_seed(0))

    try:
        model = made("meta")
    except RuntimeError:  # see `inject`
        model = made("cpu")
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class PeftMethod(LinearMethod):
    """A tuner of peft; see the module."""

    config: PeftConfig
    packages = ("peft",)
    _linears: dict[str, Any]  # by the names that `inject` takes
    _model: Any  # peft's, with the layers that it made

    def __init__(self, config: PeftConfig, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.identity_at_init = config.identity_at_init

    def _insert(self, segmenter: Adaptable) -> None:
        self._linears = {}
        super()._insert(segmenter)
        self._model = inject(self.config.tuner, self.config.options(), self._linears, generator=self.generator)
        for layer in self._layers:
            index, parts = layer.target.index, layer.adapted.parts
            made = self._model.model.layers[str(index)]
            parts.update({name: made[name] for name in parts if f"{index}.{name}" in self._linears})

    def _adapt(self, target: Any, module: str, names: Sequence[str]) -> Parts:
        base, options = self._linear(target, module), self.config.options()
        rows = {module: torch.arange(base.out_features)}
        if names != [module]:
            rows = {part: target.outputs(part) for part in SLICES}
        drops = any(value for name, value in options.items() if "dropout" in name)
        # A tuner may draw a number from torch's own generator for a dropout of 0.
        entry = TUNERS[self.config.tuner]
        quiet = entry.draws and not drops
        parts = Parts(base, rows, heads=target.heads, quiet=quiet, tokens_alone=not entry.mixes)
        self._linears |= {f"{target.index}.{name}": parts.parts[name] for name in names}
        return parts

    def adapter(self, rename: Callable[[str, str], str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The content of peft's ``adapter_config.json``, and the tensors that go with it.

        Args:
            rename: a layer's name in the encoder (``blocks.0.attn.qkv``) and a slice of it (``q``; empty for the whole layer) to the
                name in the model that will load the adapter.
        """
        paths: dict[str, str] = {}
        for layer in self._layers:
            target, module = layer.target, layer.module
            path = f"{target.name}.{target.path(module)}"
            paths |= {f"{target.index}.{n}": rename(path, "" if n == module else n) for n in layer.adapted.adapters}
        owner: Any = nn.Module()
        owner.base_model, owner.peft_config = self._model, self._model.peft_config
        tensors: dict[str, Tensor] = {}
        for key, tensor in peft.get_peft_model_state_dict(owner).items():
            head, of_layer, rest = key.partition("model.layers.")
            block, part, leaf = rest.split(".", 2) if of_layer else ("", "", "")
            tensors[f"{head}model.{paths[f'{block}.{part}']}.{leaf}" if of_layer else key] = tensor
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in owner.peft_config[_ADAPTER].to_dict().items()}
        return config | {"target_modules": sorted(paths.values()), "inference_mode": True}, tensors

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> MergeReport:
        self._model = None
        return super()._fold(mode, calibration)


class AdaLoRA(PeftMethod):
    """Singular values of the update are dropped as they prove unimportant, and its singular vectors held near orthogonal.

    What peft's allocator knows of each factor is in buffers here, so that a resumed run goes on with it.
    """

    _STATISTICS = ("exp_avg_ipt", "exp_avg_unc")

    def _insert(self, segmenter: Adaptable) -> None:
        super()._insert(segmenter)
        for layer in self._adapted().values():
            factors = {kind: getattr(layer, kind)[_ADAPTER].detach() for kind in ("lora_A", "lora_B", "lora_E")}
            for statistic in self._STATISTICS:
                zeros = {kind: torch.zeros_like(factor) for kind, factor in factors.items()}
                setattr(layer, statistic, BufferDict(zeros, persistent=True))
            kept = torch.ones_like(factors["lora_E"], dtype=torch.bool)
            layer.kept = BufferDict({"lora_E": kept, "updates": torch.zeros((), dtype=torch.int64)}, persistent=True)

    def _adapted(self) -> dict[str, Any]:
        """peft's layers by the name that its allocator knows them by."""
        return {n: layer for n, layer in self._model.model.named_modules() if isinstance(layer, BaseTunerLayer)}

    def auxiliary_loss(self) -> Tensor:
        """How far the singular vectors are from orthogonal, as peft weighs it: the mean of ‖AAᵀ − I‖ and ‖BᵀB − I‖."""
        factors = [f for layer in self._adapted().values() for f in (layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER].T)]
        unit = partial(torch.eye, dtype=factors[0].dtype, device=factors[0].device)
        off = [torch.linalg.norm(f @ f.T - unit(len(f))) for f in factors]
        return self.config.orth_reg_weight * torch.stack(off).mean()  # type: ignore[attr-defined]

    def after_update(self, *, epoch: int, step: int, total: int) -> None:
        model, layers = self._model, self._adapted()
        config, allocator = model.peft_config[_ADAPTER], model.rankallocator
        factors = {f"{n}.{kind}.{_ADAPTER}": (layer, kind) for n, layer in layers.items() for kind in layer.exp_avg_ipt}
        patterns = {f"{n}.lora_E.{_ADAPTER}": layer.kept for n, layer in layers.items()}
        config.total_step = total
        allocator.ipt = dict.fromkeys(factors)
        for statistic in self._STATISTICS:
            known = {name: getattr(layer, statistic)[kind] for name, (layer, kind) in factors.items()}
            setattr(allocator, statistic, _InPlace(known))
        gradients = [g for layer, kind in factors.values() if (g := getattr(layer, kind)[_ADAPTER].grad) is not None]
        updates = next(iter(patterns.values()))["updates"]
        parts = [
            updates,
            *(gradient.isfinite().all() for gradient in gradients),
            *(k["lora_E"] for k in patterns.values()),
        ]
        # One read for all layers, since on a GPU the host waits at each.
        number, *flags = torch.cat([part.flatten() for part in parts]).tolist()
        number += 1
        finite, ranks = flags[: len(gradients)], iter(flags[len(gradients) :])
        before = {name: [bool(next(ranks)) for _ in kept["lora_E"]] for name, kept in patterns.items()}
        config.rank_pattern = dict(before)
        if len(gradients) == len(factors) and all(finite):  # else fp16 skipped the step
            model.update_and_allocate(number)
        for statistic in self._STATISTICS:  # a copy of the method would have to copy these tables
            setattr(allocator, statistic, {})
        for name, kept in patterns.items():
            if config.rank_pattern[name] != before[name]:
                kept["lora_E"].copy_(torch.tensor(config.rank_pattern[name]).view(-1, 1))
            kept["updates"].fill_(number)


class _InPlace(dict[str, Tensor]):
    """Tensors by name; setting one copies values into it."""

    def __setitem__(self, name: str, value: Tensor) -> None:
        self[name].copy_(value)


@cache
def method_of(tuner: str) -> type[PeftMethod]:
    """The class of ``peft/TUNER``."""
    entry = TUNERS[tuner]
    namespace = {
        "__module__": __name__,
        "__doc__": f"{_PREFIX}{tuner} ({entry.paper}).",
        "name": _PREFIX + tuner,
        "config_class": tuner_config(tuner),
        "paper": entry.paper,
        "lacks": entry.lacks,
        "identity_at_init": not entry.start,
        "merge_modes": () if entry.unmerged else ("exact",),
    }
    return type(tuner, (AdaLoRA if tuner == "adalora" else PeftMethod,), namespace)


def __getattr__(name: str) -> Any:
    if name in TUNERS:
        return method_of(name)
    raise AttributeError(name)
