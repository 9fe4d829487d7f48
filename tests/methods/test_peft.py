"""Tuners of Hugging Face peft as methods: the table against peft, the contract, outputs and gradients against peft by itself."""

from __future__ import annotations

import copy
import dataclasses
from functools import lru_cache
from typing import Any

import peft
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from harness import methods
from harness.contract.case import ContractCase
from harness.contract.checks import CHECKS
from harness.methods.parts.placement import MethodError
from harness.methods.parts.sites import block_sites
from harness.methods.peft import SEEDS, TUNERS, method_of, tuner_config
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.registry import METHODS, method_config
from harness.system.errors import UsageError
from tests.methods.compared import attached

KINDS = {kind.value.lower(): kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
QUICK = ("lora", "oft", "vera", "adalora", "ia3", "lokr")
"""One of each mechanism: a low-rank sum, a rotation of sequences, shared matrices, pruned ranks, scales, one that draws when it trains."""
FAST = {"tiny": tuple(CHECKS), "tiny_mobile_sam": ("gradient", "merge")}
"""The clauses that `make test` checks of QUICK, by backbone."""
BACKBONES = ("tiny", "tiny_timm", "tiny_mobile_sam", "tiny_sam2")
pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse invariant checks"
)  # of torch, where FRoD and SHiRA build a sparse matrix
NARROW: dict[str, dict[str, Any]] = {
    "miss": {"r": 8}, "oft": {"oft_block_size": 16}, "c3a": {"block_size": 16}, "road": {"group_size": 16},
    "vblora": {"vector_length": 16}, "psoft": {"r": 8}, "osf": {"effective_rank": 8}, "fourierft": {"n_frequency": 100},
    "waveft": {"n_frequency": 100}, "shira": {"r": 4}, "glora": {"config_D_E": "none"},
}  # fmt: skip
"""Options that fit trunks of 16 to 64 channels; GLoRA's D scales biases, which a timm ViT starts at zero."""
FILLED_IN = {
    "alpha_pattern", "bias", "block_size_pattern", "exclude_modules", "fan_in_fan_out", "feedforward_modules",
    "inference_mode", "lambda_pattern", "layers_pattern", "layers_to_transform", "modules_to_save", "n_frequency_pattern",
    "progressbar", "rank_pattern", "save_indices", "save_only_topk_weights", "save_precomputed_indices", "save_projection",
    "target_modules", "target_parameters", "total_step", "use_effective_conv2d",
}  # fmt: skip
"""Fields of peft's configurations that the bridge sets or leaves alone: which layers, for how many steps, what a file holds."""
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def _fields(name: str) -> dict[str, dataclasses.Field[Any]]:
    base = {field.name for field in dataclasses.fields(peft.PeftConfig)}
    fields = dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[KINDS[name]])
    return {field.name: field for field in fields if field.name not in base | FILLED_IN | SEEDS}


def test_the_table_knows_every_tuner_of_peft() -> None:
    left_out = methods.tuners()["left_out"]
    assert TUNERS.keys() | left_out.keys() == KINDS.keys()
    assert not TUNERS.keys() & left_out.keys()
    assert list(methods.PEFT_METHODS) == [f"peft/{name}" for name in TUNERS]


@pytest.mark.parametrize("name", TUNERS)
def test_options_are_pefts_with_its_defaults(name: str) -> None:
    theirs = _fields(name)
    for option, value in TUNERS[name].options.items():
        default = value[0] if isinstance(value, list) else value
        if f"{option}={default}" not in TUNERS[name].differs:
            assert default == theirs[option].default, option
    # What is not an option switches to a start that is there for tests, needs a language model or quantised weights, or is a table.
    kinds = {"init_weights", "init_lora_weights", "init_ia3_weights", "use_dora", "use_rslora", "r"}
    plain = {n for n, f in theirs.items() if isinstance(f.default, bool | int | float) and n not in kinds}
    assert plain - TUNERS[name].options.keys() <= {
        "asa_exponent", "ensure_weight_tying", "lora_bias", "qalora_group_size", "runtime_offload_base_weight", "use_qalora",
    }  # fmt: skip


def _cases() -> list[Any]:
    return [
        pytest.param(name, backbone, check, id=f"{name}-{backbone}-{check}",
                     marks=[] if name in QUICK and check in FAST.get(backbone, ()) else [pytest.mark.slow])
        for name, entry in TUNERS.items() for backbone in BACKBONES for check in CHECKS
        if check != "schedule" and not (entry.one_width and backbone in BACKBONES[2:])
        and (check not in entry.lacks or backbone == "tiny")  # elsewhere it may be too small to see
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "backbone", "check"), _cases())
def test_a_tuner_fulfils_the_contract_or_declares_what_it_lacks(name: str, backbone: str, check: str) -> None:
    if check in TUNERS[name].lacks:
        with pytest.raises((AssertionError, RuntimeError)):
            CHECKS[check](_case(name, backbone))
    else:
        CHECKS[check](_case(name, backbone))


@lru_cache(maxsize=1)
def _case(name: str, backbone: str) -> ContractCase:
    options = {} if backbone == "tiny" else NARROW.get(name, {})
    return ContractCase(method=method_of(name), config=tuner_config(name)(**options), backbone=backbone)


STARTS = [("lora", {"init_lora_weights": kind}) for kind in ("gaussian", "mica", "olora", "orthogonal", "pissa")]
DEVIATE = [
    (name, {option: value})
    for name, entry in TUNERS.items()
    for option, values in entry.deviates.items()
    for value in values
]


@pytest.mark.parametrize(
    ("name", "options", "backbone"),
    [
        *(pytest.param(n, {}, "tiny_timm", id=n, marks=[] if n in (*QUICK, "shira", "gralora") else pytest.mark.slow) for n in TUNERS),
        *((name, options, "tiny_timm") for name, options in [*STARTS, *DEVIATE]),
        ("lily", {}, "tiny_mobile_sam"),  # whose router averages over the padding of windows too
    ],
)  # fmt: skip
def test_outputs_and_gradients_equal_those_of_peft_on_the_plain_encoder(
    name: str, options: dict[str, Any], backbone: str
) -> None:
    options = {**NARROW.get(name, {}), **options}
    segmenter, _ = attached(f"peft/{name}", sites="qkv", backbone=backbone, **options)
    ours = segmenter.encoder
    plain = build_segmenter(backbone, task="binary", image_size=64).encoder.requires_grad_(False)
    plain.config = {"model_type": "custom"}
    known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[KINDS[name]])}
    filled = {"total_step": 10, "feedforward_modules": [], "save_indices": True}
    config = PEFT_TYPE_TO_CONFIG_MAPPING[KINDS[name]](  # type: ignore[call-arg]
        target_modules=["qkv"],
        **{n: v for n, v in filled.items() if n in known},  # type: ignore[arg-type]
        **tuner_config(name)(**options).options(),
    )
    theirs: Any = PEFT_TYPE_TO_TUNER_MAPPING[KINDS[name]](plain, config, "default").model
    pairs = []  # type: ignore[var-annotated]
    with torch.no_grad():
        for path, tensor in [*ours.named_parameters(), *ours.named_buffers()]:
            if ".parts." not in path:
                continue
            layer, _, leaf = path.replace(".parts.qkv", "").partition(".attn.qkv.")
            if "exp_avg" in leaf or "kept" in leaf:  # what AdaLoRA's allocator keeps
                continue
            twin = theirs.get_submodule(f"{layer}.attn.qkv")
            *parents, last = leaf.split(".")
            for parent in parents:
                twin = getattr(twin, parent)
            other = (
                twin[last] if not isinstance(twin, torch.nn.Module) or not hasattr(twin, last) else getattr(twin, last)
            )
            if tensor.requires_grad:
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(pairs))))
                pairs.append((tensor, other))
            if isinstance(twin, dict):
                twin[last] = tensor.clone()
            else:
                other.copy_(tensor)
    outputs = [ours.eval()(IMAGES), theirs.eval()(IMAGES)]  # in training PVeRA draws noise
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1))
    for output in outputs:
        (output * weights).sum().backward()
    assert pairs
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-3 * float(other.grad.abs().max()) + 1e-12)


@pytest.mark.parametrize(("name", "options"), [*STARTS, *DEVIATE])
@pytest.mark.parametrize(
    "check", ["identity", "state", *(pytest.param(each, marks=pytest.mark.slow) for each in ("count", "merge"))]
)
def test_another_start_is_the_identity_or_declared_and_follows_from_the_state(
    name: str, options: dict[str, Any], check: str
) -> None:
    CHECKS[check](ContractCase(method=method_of(name), config=method_config(f"peft/{name}", options), backbone="tiny"))


def test_q_k_and_v_apart_are_the_fused_layer_and_fuse_again() -> None:
    for backbone in ("tiny", "tiny_mobile_sam"):  # three thirds, and by head
        segmenter, method = attached("peft/ia3", backbone=backbone, sites="q,v")
        plain = build_segmenter(backbone, task="binary", image_size=64)
        torch.testing.assert_close(segmenter.encode(IMAGES), plain.encode(IMAGES), rtol=0, atol=1e-5)
        scales = {n: p for n, p in segmenter.encoder.named_parameters() if p.requires_grad and "blocks.0." in n}
        assert sorted(n.split(".parts.")[1][0] for n in scales) == ["q", "v"]
        with torch.no_grad():
            next(p for n, p in scales.items() if ".parts.v." in n).fill_(2.0)
        method.merge()
        merged, before = (model.encoder.blocks[0].attn.qkv.weight for model in (segmenter, plain))
        (site,) = block_sites(plain.encoder, "0")
        torch.testing.assert_close(merged[site.outputs("v")], 2 * before[site.outputs("v")])
        torch.testing.assert_close(merged[site.outputs("q")], before[site.outputs("q")])


def test_what_a_tuner_starts_from_follows_from_the_methods_seed() -> None:
    for name in ("peft/lora", "peft/vera", "peft/shira", "peft/fourierft"):
        options = {"backbone": "tiny_timm", **NARROW.get(name.partition("/")[2], {})}
        states = [attached(name, seed=seed, **options)[1].state() for seed in (1, 1, 2)]
        equal = [[torch.equal(states[0][key], other[key]) for key in states[0]] for other in states[1:]]
        assert all(equal[0])
        assert not all(equal[1]), name


def test_pruned_ranks_go_on_after_a_resume_and_end_at_the_budget() -> None:
    case = ContractCase(
        method=method_of("adalora"),
        config=tuner_config("adalora")(init_r=4, target_r=2, tfinal=2),  # type: ignore[call-arg]
        backbone="tiny",
    )

    def train(*, interrupted: bool) -> dict[str, torch.Tensor]:
        segmenter, method = case.attached(seed=1)
        for step in range(8):
            if interrupted and step in (3, 7):
                state = method.state()
                segmenter, method = case.attached(seed=3)
                method.load_state(state)
            parameters = [p for group in method.parameter_groups() for p in group.named.values()]
            optimiser = torch.optim.SGD(parameters, lr=1e-2)
            optimiser.zero_grad()
            case.loss(segmenter.train(), method).backward()
            optimiser.step()
            method.after_update(epoch=0, step=step, total=8)
        return copy.deepcopy(method).state()  # a cost session merges a copy

    whole, resumed = train(interrupted=False), train(interrupted=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {"exp_avg_ipt", "exp_avg_unc", "kept"} <= {part for name in whole for part in name.split(".")}
    values = [tensor for name, tensor in whole.items() if name.endswith("lora_E.default")]
    assert sum(int((tensor != 0).sum()) for tensor in values) == 2 * len(values)


def test_singular_vectors_are_held_near_orthogonal() -> None:
    segmenter, method = attached("peft/adalora", backbone="tiny_timm")
    before = method.auxiliary_loss()
    factors = [p for n, p in segmenter.named_parameters() if "lora_A.default" in n or "lora_B.default" in n]
    off = [
        torch.linalg.norm((p @ p.T if p.shape[0] < p.shape[1] else p.T @ p) - torch.eye(min(p.shape))) for p in factors
    ]
    torch.testing.assert_close(before, 0.5 * torch.stack(off).mean())


TEXTS = [
    (f"peft/{tuner}", {option: "foo"}, (UsageError, MethodError), "foo")
    for tuner, entry in TUNERS.items()
    for option, value in entry.options.items()
    if isinstance(value, str) or (isinstance(value, list) and "str" in value)
]
"""Every option that takes a word, with one that no tuner knows."""


@pytest.mark.parametrize(
    ("name", "options", "kind", "word"),
    [
        ("peft/mis", {}, UsageError, "peft/miss"),
        ("peft/xlora", {}, UsageError, "mixes trained LoRA adapters"),
        ("peft/prompt_tuning", {}, UsageError, "language model's input"),
        ("peft/miss", {"rank": 3}, UsageError, "rank"),
        ("peft/miss", {"r": "three"}, UsageError, "r="),
        ("peft/miss", {"sites": "q,x"}, (UsageError, MethodError), "'x'"),
        ("peft/adalora", {"init_r": 4}, UsageError, "init_r"),
        ("peft/c3a", {"block_size": 24}, MethodError, "24"),
        ("peft/miss", {"r": 100}, MethodError, "100"),
        ("peft/frod", {}, MethodError, "another method"),
        ("peft/oft", {"oft_block_size": 48}, MethodError, "48"),
        ("peft/lora", {"init_lora_weights": "eva"}, UsageError, "no images"),
        ("peft/lora", {"init_lora_weights": "lora_ga"}, UsageError, "no gradients"),
        ("peft/lora", {"init_lora_weights": "pissa_niter_4"}, UsageError, "use pissa"),
        ("peft/lora", {"init_lora_weights": "orthogonal", "r": 3}, MethodError, "even"),
        ("peft/lora", {"lora_alpha": 0}, UsageError, "lora_alpha=0"),
        ("peft/vera", {"d_initial": 0.0}, UsageError, "d_initial=0"),
        ("peft/hra", {"r": 7}, UsageError, "even"),
        ("peft/osf", {"effective_rank": 500}, MethodError, "nothing in the encoder trains"),
        ("peft/osf", {"effective_rank": 1.5}, UsageError, "effective_rank"),
        ("peft/glora", {"config_A_B": "none", "config_C": "none", "config_D_E": "none"}, MethodError, "nothing"),
        ("peft/lora", {"lora_dropout": 1.0}, UsageError, "lora_dropout=1.0 must be"),
        ("peft/vera", {"r": 0}, UsageError, "r=0 must be 1 or more"),
        ("peft/vblora", {"topk": 300}, UsageError, "num_vectors=256"),
        ("peft/vblora", {"topk": 1}, UsageError, "topk=1 must be 2"),
        ("peft/vblora", {"vector_length": 0}, UsageError, "vector_length=0 must be 1"),
        ("peft/vblora", {"init_vector_bank_bound": 0.0}, UsageError, "init_vector_bank_bound=0: nothing"),
        ("peft/oft", {"num_cayley_neumann_terms": 0}, UsageError, "num_cayley_neumann_terms=0 must be 2"),
        ("peft/hra", {"apply_GS": True}, UsageError, "apply_GS=true: does not start"),
        ("peft/adalora", {"beta1": 1.0}, UsageError, "beta1=1.0 must be between"),
        ("peft/lokr", {"rank_dropout": -0.5}, UsageError, "rank_dropout=-0.5 must be at least 0"),
        *TEXTS,
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_built(
    name: str, options: dict[str, Any], kind: Any, word: str
) -> None:
    with pytest.raises(kind, match=word) as caught:
        method_config(name, options).encoder_parameters(backbone_shape("tiny_sam2" if "frod" in name else "tiny"))
    assert "\n" not in str(caught.value)


def test_names_that_methods_had_here_lead_to_pefts() -> None:
    assert [METHODS.resolve(name) for name in ("OFT", "vera", "shira", "gralora")] == [
        "peft/oft", "peft/vera", "peft/shira", "peft/gralora",
    ]  # fmt: skip
    assert not {"oft", "peft/oft"} & set(METHODS.names())
