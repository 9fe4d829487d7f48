"""The clauses of the contract: each takes a `ContractCase` and raises `Violation` where the method breaks it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from harness.contract.case import (
    SEED,
    STEPS,
    ContractCase,
    first,
    grouped_parameters,
    must_refuse,
)
from harness.contract.start import logits, require, require_count, require_start
from harness.methods.base import MergeMode, MergeReport, Method
from harness.methods.parts.placement import MethodError, parse_blocks
from harness.models.catalog import trained_in_decoder
from harness.models.decoders import DECODERS
from harness.models.original_sam import plain_sam, sam_state_dict
from harness.models.sam_encoder import SAMEncoder
from harness.models.segmenter import Segmenter

IDENTITY_TOLERANCE = 1e-6
BATCH_TOLERANCE = dict.fromkeys(DECODERS, 1e-05) | {"mask-transformer": 2e-4, "mask2former": 1e-4}
"""By decoder: the mask transformer's last norm divides the difference of two classes by its own size, at least √ε, so that it
enlarges rounding errors up to 1 / √1e-5 = 316 times."""
RECOMPUTE_TOLERANCE = 1e-6

Clause = Callable[[ContractCase], None]


def identity(subject: ContractCase) -> None:
    """Attaching changes no output, or the method declares that it does."""
    # PyTorch uses other kernels where no parameter requires a gradient, so both are compared without gradients.
    before = logits(subject.plain().requires_grad_(False), subject.images)
    segmenter, method = subject.attached()
    after = logits(segmenter.requires_grad_(False), subject.images)
    require_start(method, before, after, tolerance=IDENTITY_TOLERANCE)
    moved = method.identity_at_init or not torch.equal(before, after)
    require(moved, "declares a deviation at init, but there is none")


def gradient(subject: ContractCase) -> None:
    """Gradients reach exactly the declared parameters, each within three steps unless a router leaves it out."""
    training, config = subject.training, subject.config
    marked, reached, routed = training.marked, training.reached, training.may_idle
    require(training.declared == marked, f"groups and requires_grad differ: {first(training.declared ^ marked)}")
    if not config.trains:
        require(not marked, f"declares that nothing trains, but {first(marked)} does")
        return
    decoder = training.decoder
    if not config.freezes_decoder:
        require(decoder <= marked, f"mask decoder and head must train: {first(decoder - marked)} does not")
    outside = {name for name in marked - decoder if not name.startswith("encoder.")}
    require(not outside, f"trains {first(outside)}, which is in neither encoder nor mask decoder")
    stray = training.with_gradient - marked
    require(not stray, f"{first(stray)} is frozen and gets a gradient")
    idle = marked - reached
    require(idle <= routed, f"no gradient within {STEPS} steps: {first(idle - routed)}")
    require(not routed or bool(routed & reached), "the router sent nothing to any routed parameter")


def parameter_count(subject: ContractCase) -> None:
    """The trainable parameters of the encoder and of the mask decoder equal the closed forms of the configuration."""
    segmenter, method = subject.attached()
    require_count(method, segmenter.encoder, subject.shape)
    of_encoder = method.config.encoder_parameters(subject.shape)
    of_decoder = sum(p.numel() for p in segmenter.parameters() if p.requires_grad) - of_encoder
    closed_form = trained_in_decoder(method.config, subject.backbone, task="binary", decoder=subject.decoder)
    require(of_decoder == closed_form, f"{of_decoder} decoder parameters train, but the closed form says {closed_form}")


def frozen(subject: ContractCase) -> None:
    """Training leaves every frozen weight and every buffer of the backbone bit-identical."""
    changed = subject.training.changed
    require(not changed, f"training changes {first(changed)}, which is frozen")


def state(subject: ContractCase) -> None:
    """The state restores bit-identical outputs from a file, and refuses foreign names and shapes."""
    segmenter, method = subject.train()[0]
    saved = method.state()
    differ = set(saved) ^ {*grouped_parameters(method), *method.own_buffers()}
    require(not differ, f"the state does not hold exactly what trains: {first(differ)}")
    other, restored = subject.attached(seed=2)
    restored.load_state(load(save({name: tensor.contiguous() for name, tensor in saved.items()})))
    require(
        torch.equal(logits(segmenter, subject.images), logits(other, subject.images)),
        "a restored state gives other outputs",
    )
    wrong: list[dict[str, Tensor]] = [{**saved, "foreign": torch.zeros(1)}]
    for name in list(saved)[:1]:
        wrong += [{key: tensor for key, tensor in saved.items() if key != name}, {**saved, name: torch.zeros(1, 2, 3)}]
    for broken in wrong:
        with must_refuse("a state with a missing, foreign or misshapen tensor is accepted"):
            restored.load_state(broken)


def determinism(subject: ContractCase) -> None:
    """Training twice with the same seed gives the same bits, and does not use torch's global generator."""
    once = subject.training
    torch.rand(5)  # another position of the global generator must not matter
    _, repeat = subject.train()
    require(not once.draws and not repeat.draws, "uses torch's global generator")
    require(once.losses == repeat.losses, f"losses differ between two equal runs: {once.losses} and {repeat.losses}")
    changed = {name for name, tensor in once.state.items() if not torch.equal(tensor, repeat.state[name])}
    require(not changed, f"{first(changed)} differs between two equal runs")


def finite_under_autocast(subject: ContractCase) -> None:
    """Loss and gradients stay finite under bf16 autocast, parameters stay float32, and the output of qkv stays bf16: a sum with a
    float32 parameter would make attention run at a precision, and with a memory use, that other methods do not have."""
    segmenter, method = subject.trained()
    given: set[torch.dtype] = set()
    for name, module in segmenter.encoder.named_modules():
        if name.endswith((".attn.qkv", ".attention.qkv")):
            module.register_forward_hook(lambda module, inputs, output: given.add(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = subject.loss(segmenter, method)
    _backward(loss, method)
    require(given <= {torch.bfloat16}, "qkv gives float32 under bf16 autocast")
    require(bool(loss.isfinite()), f"the loss is {float(loss.detach())} under bf16 autocast")
    for name, parameter in grouped_parameters(method).items():
        require(parameter.dtype == torch.float32, f"{name} became {parameter.dtype}")
        require(parameter.grad is None or bool(parameter.grad.isfinite().all()), f"gradient of {name} is not finite")


def batch(subject: ContractCase) -> None:
    """In evaluation, an image's output does not depend on the others in its batch."""
    segmenter, _ = subject.trained()
    together = logits(segmenter, subject.images[:2])
    apart = torch.cat([logits(segmenter, subject.images[i : i + 1]) for i in range(2)])
    largest = float((together - apart).abs().max())
    require(largest <= BATCH_TOLERANCE[subject.decoder], f"outputs change by {largest:.1e} if two images share a batch")


def checkpointing(subject: ContractCase) -> None:
    """With activation checkpointing, loss, gradients, buffers and random numbers stay the same, and the backward pass recomputes."""
    seen = []
    passes = [0, 0]
    for recompute in (False, True):
        segmenter, method = subject.attached(recompute=recompute, seed=SEED)
        method.load_state(subject.training.state)

        def count(*_: object, at: int = int(recompute)) -> None:
            passes[at] += 1

        for module in segmenter.encoder.modules():
            module.register_forward_pre_hook(count)
        loss = subject.loss(segmenter, method)
        _backward(loss, method)
        gradients = {n: p.grad.clone() for n, p in segmenter.named_parameters() if p.grad is not None}
        buffers = {n: b.clone() for n, b in segmenter.named_buffers()}
        seen.append((float(loss.detach()), gradients, buffers, method.generator.get_state()))
    (plain, gradients, buffers, generator), (recomputed, gradients_, buffers_, generator_) = seen
    require(abs(plain - recomputed) <= RECOMPUTE_TOLERANCE, f"the loss is {recomputed}, {plain} without checkpointing")
    differ = gradients.keys() ^ gradients_.keys()
    require(not differ, f"a gradient appears or is lost: {first(differ)}")
    _require_close(gradients, gradients_, "gradient of")
    _require_close(buffers, buffers_, "buffer")
    require(torch.equal(generator, generator_), "recomputation advances the method's generator")
    repeated = passes[1] > passes[0] or not subject.config.trains_encoder  # a frozen encoder keeps nothing either way
    require(repeated, "checkpointing recomputes nothing, so it saves no memory")


def _backward(loss: Tensor, method: Method) -> None:
    if method.config.trains:  # otherwise there is no gradient
        loss.backward()


def _require_close(plain: dict[str, Tensor], recomputed: dict[str, Tensor], what: str) -> None:
    for name, tensor in plain.items():
        if not tensor.is_floating_point():
            require(torch.equal(tensor, recomputed[name]), f"{what} {name} differs with checkpointing")
            continue
        largest = float((tensor - recomputed[name]).abs().max()) if tensor.numel() else 0.0
        require(largest <= RECOMPUTE_TOLERANCE, f"{what} {name} differs by {largest:.1e} with checkpointing")


_BLOCKS = ("all", "first-half", "last-half", "global", "0")
_SITES = ("qkv", "q,v", "q,k,v", "proj", "mlp", "proj,mlp")


def placement(subject: ContractCase) -> None:
    """``blocks`` and ``sites`` restrict the method to what they name, and the closed form counts them so; nonsense is refused."""
    names = {field.name for field in fields(subject.config)}
    if "blocks" not in names:
        return
    for blocks in _BLOCKS:
        if blocks != "global" or subject.shape.global_blocks:
            _require_blocks(_with(subject, blocks=blocks), blocks)
    for sites in _SITES if "sites" in names else ():
        try:
            placed = _with(subject, sites=sites)
        except MethodError:  # the configuration refuses these
            continue
        segmenter, method = placed.attached()
        require_count(method, segmenter.encoder, placed.shape)
        with torch.no_grad():
            finite = math.isfinite(float(segmenter(subject.images[:2]).masks.sum()))
        require(finite, f"sites={sites}: the logits are not finite")
    for nonsense in ("no-such-blocks", str(subject.shape.depth)):
        with must_refuse(f"blocks={nonsense!r} is accepted"):
            _with(subject, blocks=nonsense).attached()


def _require_blocks(subject: ContractCase, blocks: str) -> None:
    (segmenter, method), shape = subject.attached(), subject.shape
    require_count(method, segmenter.encoder, shape)
    allowed = set(parse_blocks(blocks, depth=shape.depth, global_blocks=shape.global_blocks))
    for index, block in enumerate(segmenter.encoder.blocks):
        trains = any(parameter.requires_grad for parameter in block.parameters())
        require(index in allowed or not trains, f"blocks={blocks} trains in block {index}")


def _with(subject: ContractCase, **changes: Any) -> ContractCase:
    return replace(subject, config=replace(subject.config, **changes))


EPOCHS = 4


def schedule(subject: ContractCase) -> None:
    """`passes_at` is pure: called again, in reverse order and after training, it returns the same."""
    _, method = subject.trained()
    _, fresh = subject.attached()
    moments = [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS)]
    answers = {(epoch, step): fresh.passes_at(epoch=epoch, step=step) for epoch, step in moments}
    for epoch, step in reversed(moments):
        for each in (fresh, method):
            later, before = each.passes_at(epoch=epoch, step=step), answers[epoch, step]
            require(later == before, f"epoch {epoch}, step {step}: passes_at says {before} first and {later} later")
    roles = {role for passes in answers.values() for updated in passes for role in updated}
    known = {group.role for group in fresh.parameter_groups()}
    require(roles <= known, f"updates {', '.join(sorted(roles - known))}, but no parameter group has that role")


def properties(subject: ContractCase) -> None:
    """The attached model has the gradients and added parameters that the configuration declares."""
    plain = sum(p.numel() for p in subject.plain().encoder.parameters())
    segmenter, method = subject.attached()
    config, encoder = method.config, segmenter.encoder
    added = sum(p.numel() for p in encoder.parameters()) - plain
    declared = config.added_parameters(subject.shape)
    require(added == declared, f"adds {added} parameters to the encoder, but its configuration says {declared}")
    trains = any(p.requires_grad for p in encoder.parameters())
    require(config.trains_encoder or not trains, "trains_encoder is False, but something in the encoder trains")
    first = config.gradient_from(subject.shape)
    reached = _blocks_with_gradient(subject, segmenter, method)
    below = [block for block in reached if first is None or block < first]
    says = "that no gradient passes the backbone, but it" if first is None else f"{first}, but a gradient"
    require(not below, f"gradient_from says {says} reaches block {min(below, default=0)}")


def _blocks_with_gradient(subject: ContractCase, segmenter: Segmenter, method: Method) -> set[int]:
    """Blocks whose output gets a gradient: the backward pass goes through them, or ends at them."""
    reached: set[int] = set()
    if not method.config.trains:
        return reached

    def watch(index: int, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: reached.add(index))

    for index, block in enumerate(segmenter.encoder.blocks):
        block.register_forward_hook(lambda block, inputs, output, index=index: watch(index, output))
    segmenter.train()
    subject.loss(segmenter, method).backward()
    return reached


MERGE_TOLERANCE = 1e-4
"""Relative, for ``exact`` and ``conv`` merges; ``calibrated`` approximates and only has to report its error correctly."""


def declared_merges(subject: ContractCase) -> None:
    """Every declared mode merges within its tolerance and reports its error correctly; every other mode is refused."""
    modes: tuple[MergeMode, ...] = ("exact", "conv", "calibrated")
    _, method = subject.attached()
    for mode in modes:
        if mode not in method.merge_modes:
            with must_refuse(f"{mode} is not among its merge modes, but is accepted"):
                method.merge(mode, calibration=[subject.images], held_out=[subject.images])
            continue
        _merged(subject, mode)


def _merged(subject: ContractCase, mode: MergeMode) -> None:
    segmenter, method = subject.trained()
    calibration, held_out = subject.images[:2], subject.images[2:]
    before = logits(segmenter, held_out)
    report = method.merge(mode, calibration=[calibration], held_out=[held_out])
    after = logits(segmenter, held_out)
    measured = float((after - before).abs().max()), float((after - before).norm() / before.norm())
    require(report.mode == mode, f"the report of {mode} says {report.mode}")
    reported = report.max_deviation, report.relative_deviation
    require(None not in reported, f"{mode} reports no deviation although it was given held-out images")
    right = all(x is not None and abs(x - y) <= 1e-6 + 1e-2 * y for x, y in zip(reported, measured, strict=True))
    require(right, f"{mode} reports a deviation of {reported} (largest, relative); measured {measured}")
    require(measured[1] < float("inf"), f"{mode} gives outputs that are not finite")
    unknown = set(report.partly) - set(report.left)
    require(
        not unknown, f"{mode} reports {first(unknown)} as folded in part, but not among the sites that keep the rest"
    )
    if mode != "calibrated":
        require(measured[1] <= MERGE_TOLERANCE, f"{mode} changes the output by {measured[1]:.1e} (relative)")
    sizes = [sum(p.numel() for p in model.encoder.parameters()) for model in (segmenter, subject.plain())]
    extra = sizes[0] - sizes[1]
    require(
        extra == report.extra_parameters,
        f"{mode} reports {report.extra_parameters} extra parameters, but there are {extra}",
    )
    if not report.left and mode != "conv":
        _require_plain(subject, segmenter, report)


def _require_plain(subject: ContractCase, segmenter: Segmenter, report: MergeReport) -> None:
    """After a complete merge the encoder loads strictly into the plain backbone (for SAM's, into segment_anything's own
    modules), which then embeds images the same."""
    require(not report.extra_parameters, f"{report.mode} folds everything, but adds {report.extra_parameters}")
    encoder = subject.plain().encoder
    differ = segmenter.encoder.state_dict().keys() ^ encoder.state_dict().keys()
    require(not differ, f"{report.mode} leaves names that a plain backbone does not have: {first(differ)}")
    if isinstance(segmenter.encoder, SAMEncoder):
        sam = plain_sam(subject.backbone, image_size=subject.images.shape[-1])
        sam.load_state_dict(sam_state_dict(segmenter), strict=True)
        encoder = sam.image_encoder
    else:
        encoder.load_state_dict(segmenter.encoder.state_dict(), strict=True)
    with torch.no_grad():
        images = subject.images[2:]
        largest = float((encoder(images) - segmenter.encoder(images)).abs().max())
    require(
        largest <= MERGE_TOLERANCE,
        f"the plain encoder with the {report.mode} merge embeds images differently by {largest:.1e}",
    )


CHECKS: dict[str, Clause] = {
    "identity": identity,
    "gradient": gradient,
    "count": parameter_count,
    "frozen": frozen,
    "state": state,
    "determinism": determinism,
    "autocast": finite_under_autocast,
    "batch": batch,
    "checkpointing": checkpointing,
    "placement": placement,
    "schedule": schedule,
    "properties": properties,
    "merge": declared_merges,
}
