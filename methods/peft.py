"""Hugging Face peft's tuners as methods: ``peft/miss``, ``peft/lokr[r=4]``, …; see `harness.methods.configs.peft`.

Each layer that a tuner changes becomes a `Parts`: its linear layers as peft wants them, q, k and v of a fused one apart, with their
weights copied and frozen. A merge lets peft fold its update into each and puts them together again, under the backbone's own names.
Deviations: outputs come back in autocast's precision, as those of a plain layer do; a map of tokens reaches a tuner as a sequence.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import peft
import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from harness.methods.base import MergeMode, Method
from harness.methods.configs.peft import PREFIX, SEEDS, TUNERS, PeftConfig, config_of
from harness.methods.linears import modules_of
from harness.methods.parts.merging import MergeReport, fold_layers
from harness.methods.parts.placement import MethodError
from harness.methods.parts.sites import SLICES, Adaptable, BlockSite, block_sites

_KINDS = {kind.value.lower(): kind for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
_ADAPTER = "default"


class Parts(nn.Module):
    """A linear layer as several, each of which gives some of its outputs.

    Args:
        base: the backbone's own layer.
        rows: by part, which outputs it gives; together all, each once.
        heads: in so many groups of outputs each part has its share one after the other.
        quiet: the parts are never set to training: some draw a number for a dropout that is 0.
    """

    tokens_alone = True

    def __init__(self, base: nn.Linear, rows: Mapping[str, Tensor], *, heads: int = 1, quiet: bool = False) -> None:
        super().__init__()
        self.heads, self.quiet = heads, quiet
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
        """(…, outputs) of the one layer of what its parts give. An index would put them in order, too, but is slow in backward."""
        if len(parts) == 1:
            return parts[0]
        return torch.stack([part.unflatten(-1, (self.heads, -1)) for part in parts], dim=-2).flatten(-3)

    @property
    def adapters(self) -> dict[str, BaseTunerLayer]:
        """The parts that a tuner changes."""
        return {name: part for name, part in self.parts.items() if isinstance(part, BaseTunerLayer)}

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """One layer again, with what peft merges into the parts."""
        for adapter in self.adapters.values():
            adapter.merge()
        layers = [_plain(part) for part in self.parts.values()]
        bias = None if layers[0].bias is None else self._joined([layer.bias for layer in layers])
        return _frozen(self._joined([layer.weight.T for layer in layers]).T, bias)


def _plain(layer: nn.Module) -> nn.Linear:
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    assert isinstance(base, nn.Linear)
    return base


def _frozen(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of these weights; none are drawn."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return layer


def split(model: nn.Module) -> nn.Module:
    """``model``, a transformers ``SamModel``, with q, k and v of every fused ``qkv`` apart, in place: what peft loads an adapter of
    slices into."""
    for owner in list(model.modules()):
        base = getattr(owner, "qkv", None)
        if isinstance(base, nn.Linear):
            thirds = torch.arange(base.out_features).chunk(3)
            owner.qkv = Parts(base, dict(zip("qkv", thirds, strict=True)))
    return model


class _Holder(nn.Module):
    """What peft takes for a model: by block and part, as layers of a kind have a name in common, by which some tuners share."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for name, layer in layers.items():
            block, _, part = name.partition(".")
            if block not in self.layers:
                self.layers[block] = nn.ModuleDict()
            self.layers[block][part] = layer  # type: ignore[operator]
        self.config = {"model_type": "custom"}


def inject(
    tuner: str, options: Mapping[str, Any], layers: Mapping[str, nn.Linear], *, generator: torch.Generator
) -> BaseTuner:
    """Let peft replace ``layers`` (by name such as ``0.q``, frozen) by its own, which are then in ``model.layers`` of what comes back.

    Args:
        generator: every initial value follows from it.

    Raises:
        MethodError: peft refuses the options on these layers; its own words.
    """
    kind = _KINDS[tuner]
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    known = config_class.__dataclass_fields__
    filled: dict[str, Any] = {
        "target_modules": sorted({name.partition(".")[2] for name in layers}),
        "progressbar": False,
        "save_indices": True,
        "total_step": 10**9,  # until a run says
        "feedforward_modules": sorted({"mlp_out"} & {name.partition(".")[2] for name in layers}),
    }
    drawn = {name: int(torch.randint(2**31 - 1, (), generator=generator)) for name in sorted(SEEDS & set(known))}
    filled |= {} if tuner == "frod" else drawn  # what FRoD takes out of the weights, no state holds
    filled = {name: value for name, value in filled.items() if name in known} | dict(options)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(int(torch.randint(2**31 - 1, (), generator=generator)))
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Invalid `")  # peft takes another value than the one given
        if options.get("boft_n_butterfly_factor", 1) != 1:
            warnings.filterwarnings("error", message="Setting boft_n_butterfly_factor")
        try:
            model: BaseTuner = peft.PEFT_TYPE_TO_TUNER_MAPPING[kind](_Holder(layers), config_class(**filled), _ADAPTER)
        except NotImplementedError:  # looks at weights that are none
            raise
        except (ValueError, TypeError, AssertionError, RuntimeError, UserWarning) as error:
            raise MethodError(f"{PREFIX}{tuner}: {' '.join(str(error).split()) or type(error).__name__}") from error
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for name, value in list(vars(layer).items()):  # what peft draws and keeps aside, a state must hold
            if (
                not name.startswith("_")
                and isinstance(value, dict)
                and value
                and all(isinstance(item, Tensor) for item in value.values())
            ):
                setattr(layer, name, BufferDict(value, persistent=True))
        ranks: Any = getattr(layer, "ranknum", None)
        if ranks is not None:  # AdaLoRA's, which nothing trains
            del layer.ranknum
            layer.ranknum = BufferDict({name: rank.detach() for name, rank in ranks.items()}, persistent=True)
    return model


def trained_parameters(tuner: str, options: Mapping[str, Any], layers: Sequence[tuple[str, int, int]]) -> int | str:
    """How many a tuner trains on layers (name, inputs, outputs), or why it cannot."""
    shared = peft.PEFT_TYPE_TO_TUNER_MAPPING[_KINDS[tuner]].uses_shared_state or tuner == "lily"
    try:
        if shared:
            return _trained(tuner, options, layers)
        times = Counter((name.endswith(".mlp_out"), inputs, outputs) for name, inputs, outputs in layers)
        return sum(
            number * _trained(tuner, options, [("0.mlp_out" if last else "0.q", inputs, outputs)])
            for (last, inputs, outputs), number in times.items()
        )
    except MethodError as error:
        return str(error).removeprefix(f"{PREFIX}{tuner}: ")


def _trained(tuner: str, options: Mapping[str, Any], layers: Sequence[tuple[str, int, int]]) -> int:
    for device in ("meta", "cpu"):
        bare = {
            name: _frozen(torch.ones(outputs, inputs, device=device), torch.ones(outputs, device=device))
            for name, inputs, outputs in layers
        }
        try:
            model = inject(tuner, options, bare, generator=torch.Generator().manual_seed(0))
        except NotImplementedError:  # looks at the weights
            continue
        return sum(p.numel() for p in model.parameters() if p.requires_grad)
    raise MethodError("cannot be counted")


class PeftMethod(Method):
    """A tuner of peft; see the module."""

    config: PeftConfig
    packages = ("peft",)
    _parts: list[tuple[BlockSite, str, Parts]]
    _model: list[BaseTuner]

    def _insert(self, segmenter: Adaptable) -> None:
        shape = segmenter.encoder.shape
        if reason := TUNERS[self.config.tuner].one_width:
            shape.require_one_width(self.name, reason)
        self._parts = []
        layers: dict[str, nn.Linear] = {}
        options = self.config.options()
        drops = any(value for name, value in options.items() if "dropout" in name)
        quiet = self.config.tuner in ("loha", "lokr") and not drops
        for place in block_sites(segmenter.encoder, self.config.blocks):
            for module, names in modules_of(shape.blocks[place.index], self.config.sites).items():
                base = place.get(module)
                if not isinstance(base, nn.Linear):
                    raise MethodError(f"{self.name} adapts linear layers, and {place.name}.{module} is none")
                rows = {part: place.outputs(part) for part in SLICES}
                if names == [module]:
                    rows = {module: torch.arange(base.out_features)}
                parts = Parts(base, rows, heads=place.heads, quiet=quiet)
                self._parts.append((place, module, parts))
                layers |= {f"{place.index}.{name}": _plain(parts.parts[name]) for name in names}
        model = inject(self.config.tuner, options, layers, generator=self.generator)
        for place, module, parts in self._parts:
            for name in parts.parts:
                if f"{place.index}.{name}" in layers:
                    parts.parts[name] = model.model.layers[str(place.index)][name]
            place.replace(module, parts)
        self._model = [model]

    def adapter(self, rename: Callable[[str], str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The content of peft's ``adapter_config.json``, and the tensors that go with it.

        Args:
            rename: a layer's name in the encoder (``blocks.0.attn.qkv``) as the model has it that will load the adapter. Slices of a fused
                layer are ``….parts.q`` there, which `split` makes.
        """
        paths: dict[str, str] = {}
        for place, module, parts in self._parts:
            whole = rename(f"{place.name}.{place.path(module)}")
            for name in parts.adapters:
                paths[f"{place.index}.{name}"] = whole if name == module else f"{whole}.parts.{name}"
        (model,) = self._model
        owner: Any = nn.Module()
        owner.base_model, owner.peft_config = model, model.peft_config
        tensors: dict[str, Tensor] = {}
        for key, tensor in peft.get_peft_model_state_dict(owner).items():
            head, of_layer, rest = key.partition("model.layers.")
            if of_layer:
                block, part, leaf = rest.split(".", 2)
                key = f"{head}model.{paths[f'{block}.{part}']}.{leaf}"
            tensors[key] = tensor
        config = {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in model.peft_config[_ADAPTER].to_dict().items()
        }
        return config | {"target_modules": sorted(paths.values()), "inference_mode": True}, tensors

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> MergeReport:
        done = fold_layers((place, module) for place, module, _ in self._parts)
        self._parts, self._model = [], []
        return done


@cache
def method_of(tuner: str) -> type[PeftMethod]:
    """The class of ``peft/TUNER``."""
    entry = TUNERS[tuner]
    namespace = {
        "__module__": __name__,
        "__doc__": f"{PREFIX}{tuner} ({entry.paper}).",
        "name": PREFIX + tuner,
        "config_class": config_of(tuner),
        "paper": entry.paper,
        "lacks": entry.lacks,
        "identity_at_init": not entry.start,
        "merge_modes": () if entry.unmerged else ("exact",),
    }
    return type(tuner, (_BASES.get(tuner, PeftMethod),), namespace)


class AdaLoRA(PeftMethod):
    """Singular values of the update are dropped as they prove unimportant, and its singular vectors held near orthogonal.

    peft's allocator keeps what it knows of each in dictionaries; here those are buffers, so that a resumed run goes on with them.
    """

    _STATISTICS = ("exp_avg_ipt", "exp_avg_unc")

    def _insert(self, segmenter: Adaptable) -> None:
        super()._insert(segmenter)
        for layer in self._adapted().values():
            factors = {kind: getattr(layer, kind)[_ADAPTER] for kind in ("lora_A", "lora_B", "lora_E")}
            for statistic in self._STATISTICS:
                zeros = {kind: torch.zeros_like(factor, requires_grad=False) for kind, factor in factors.items()}
                setattr(layer, statistic, BufferDict(zeros, persistent=True))
            kept = torch.ones_like(factors["lora_E"], dtype=torch.bool)
            layer.kept = BufferDict({"lora_E": kept, "updates": torch.zeros((), dtype=torch.int64)}, persistent=True)

    def _adapted(self) -> dict[str, Any]:
        """peft's layers by the name that its allocator knows them by."""
        blocks: Any = self._model[0].model.layers
        return {f"layers.{block}.{part}": layer for block in blocks for part, layer in blocks[block].items()}

    def auxiliary_loss(self) -> Tensor:
        """How far the singular vectors are from orthogonal, as peft weighs it: the mean of ‖AAᵀ − I‖ and ‖BᵀB − I‖."""
        squares = [
            square
            for layer in self._adapted().values()
            for square in (
                layer.lora_A[_ADAPTER] @ layer.lora_A[_ADAPTER].T,
                layer.lora_B[_ADAPTER].T @ layer.lora_B[_ADAPTER],
            )
        ]
        off = torch.stack([torch.linalg.norm(square - torch.eye(len(square)).to(square)) for square in squares])
        return self.config.orth_reg_weight * off.mean()  # type: ignore[attr-defined]

    def after_update(self, *, epoch: int, step: int, total: int) -> None:
        (model,), layers = self._model, self._adapted()
        config: Any = model.peft_config[_ADAPTER]
        allocator: Any = model.rankallocator
        names = {
            f"{name}.{kind}.{_ADAPTER}": (layer, kind) for name, layer in layers.items() for kind in layer.exp_avg_ipt
        }
        config.total_step = total
        config.rank_pattern = {
            f"{name}.lora_E.{_ADAPTER}": layer.kept["lora_E"].flatten().tolist() for name, layer in layers.items()
        }
        allocator.ipt = dict.fromkeys(names)
        for statistic in self._STATISTICS:
            setattr(
                allocator, statistic, {name: getattr(layer, statistic)[kind] for name, (layer, kind) in names.items()}
            )
        number = int(next(iter(layers.values())).kept["updates"]) + 1
        gradients = [getattr(layer, kind)[_ADAPTER].grad for layer, kind in names.values()]
        if all(
            gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients
        ):  # else fp16 made no step
            model.update_and_allocate(number)
        with torch.no_grad():
            for statistic in self._STATISTICS:
                for name, value in getattr(allocator, statistic).items():
                    layer, kind = names[name]
                    getattr(layer, statistic)[kind].copy_(value)
            for name, layer in layers.items():
                kept = config.rank_pattern[f"{name}.lora_E.{_ADAPTER}"]
                layer.kept["lora_E"].copy_(torch.tensor(kept).view(-1, 1))
                layer.kept["updates"].fill_(number)


_BASES: dict[str, type[PeftMethod]] = {"adalora": AdaLoRA}


def __getattr__(name: str) -> Any:
    if name in TUNERS:
        return method_of(name)
    raise AttributeError(name)


if __name__ == "__main__":  # see harness.methods.configs.peft.count
    answers, sys.stdout = sys.stdout, sys.stderr  # where peft may print what it likes
    for line in sys.stdin:
        print(json.dumps(trained_parameters(*json.loads(line)[1:])), file=answers, flush=True)
