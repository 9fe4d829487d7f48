"""The clauses of the contract: each takes a `ContractCase`, raises `Violation` where it is broken."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from harness.contract.case import (
    SEED,
    STEPS,
    ContractCase,
    Violation,
    first,
    grouped_parameters,
    logits,
    must_refuse,
    require,
)
from harness.methods.base import MergeMode, MergeReport, Method
from harness.methods.parts.placement import MethodError, parse_blocks
from harness.models.catalog import trained_in_decoder
from harness.models.decoders import DECODERS
from harness.models.original_sam import plain_sam, sam_state_dict
from harness.models.sam_encoder import SAMEncoder
from harness.models.segmenter import Segmenter

IDENTITY_TOLERANCE = 1e-6
BATCH_TOLERANCE = dict.fromkeys(DECODERS, 1e-05) | {"mask-transformer": 2e-4, "mask2former": 1e-4}
"""By decoder: the mask transformer's last norm divides the difference of two classes by itself and √ε, so that it makes
rounding up to 1 / √1e-5 = 316 times larger."""
RECOMPUTE_TOLERANCE = 1e-6
FILE_OVERHEAD = 300
"""Bytes that a safetensors file may need for each tensor beyond its values: name, type, shape, offsets."""


Check = Callable[[ContractCase], None]


def identity(subject: ContractCase) -> None:
    """Attaching changes no output, or the method declares that it does."""
    # Where nothing asks for a gradient, PyTorch takes other kernels; with both alike, what moves is the method's doing.
    before = logits(subject.plain().requires_grad_(False), subject.images)
    segmenter, method = subject.attached()
    largest = float((logits(segmenter.requires_grad_(False), subject.images) - before).abs().max())
    if method.identity_at_init:
        require(largest <= IDENTITY_TOLERANCE, f"declares identity at init, but logits move by {largest:.1e}")
        return
    require(largest > 0, "declares a deviation at init, but there is none")
    require(largest < float("inf"), "logits are not finite after attaching")


def gradient(subject: ContractCase) -> None:
    """Gradient reaches exactly the declared parameters, each within three steps unless a router passes it by."""
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
    require(not outside, f"trains {first(outside)}, which is neither encoder nor mask decoder")
    stray = training.with_gradient - marked
    require(not stray, f"{first(stray)} is frozen and gets a gradient")
    idle = marked - reached
    require(idle <= routed, f"no gradient within {STEPS} steps: {first(idle - routed)}")
    require(not routed or bool(routed & reached), "the router sent nothing to any routed parameter")


def parameter_count(subject: ContractCase) -> None:
    """The trainable parameters of encoder and of mask decoder equal the closed forms of the configuration."""
    segmenter, method = subject.attached()
    attached = sum(p.numel() for p in segmenter.encoder.parameters() if p.requires_grad)
    closed_form = method.config.encoder_parameters(subject.shape)
    require(attached == closed_form, f"{attached} parameters train in the encoder, the closed form says {closed_form}")
    of_decoder = sum(p.numel() for p in segmenter.parameters() if p.requires_grad) - attached
    closed_form = trained_in_decoder(method.config, subject.backbone, task="binary", decoder=subject.decoder)
    require(
        of_decoder == closed_form, f"{of_decoder} parameters train in the decoder, the closed form says {closed_form}"
    )


def frozen(subject: ContractCase) -> None:
    """Training leaves every frozen weight and every buffer of the backbone bit-identical."""
    changed = subject.training.changed
    require(not changed, f"training changes {first(changed)}, which is frozen")


def state(subject: ContractCase) -> None:
    """The state restores bit-identical outputs from a small file, and refuses foreign names and shapes."""
    segmenter, method = subject.train()[0]
    saved = method.state()
    trained = grouped_parameters(method)
    buffers = set(method.own_buffers())
    require(
        set(saved) == set(trained) | buffers,
        f"state holds more or less than what trains: {first(set(saved) ^ set(trained) ^ buffers)}",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in saved.items()}, path)
        size, loaded = path.stat().st_size, load_file(path)
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in saved.values())
    require(
        size <= numbers + FILE_OVERHEAD * (len(saved) + 1), f"the file has {size} bytes for {numbers} bytes of numbers"
    )
    other, restored = subject.attached(seed=2)
    restored.load_state(loaded)
    require(
        torch.equal(logits(segmenter, subject.images), logits(other, subject.images)),
        "a restored state gives other outputs",
    )
    without = ({k: v for k, v in saved.items() if k != name} for name in list(saved)[:1])
    misshapen = ({**saved, name: torch.zeros(1, 2, 3)} for name in list(saved)[:1])
    for broken in (*without, {**saved, "foreign": torch.zeros(1)}, *misshapen):
        with must_refuse("a state with a missing, foreign or misshapen tensor is accepted"):
            restored.load_state(broken)


def determinism(subject: ContractCase) -> None:
    """The same seed trains to the same bits, and nothing is drawn from the global generator."""
    once = subject.training
    torch.rand(5)  # another position of the global generator must not matter
    _, again = subject.train()
    require(not once.draws and not again.draws, "draws from torch's global generator")
    require(once.losses == again.losses, f"losses differ between two equal runs: {once.losses} and {again.losses}")
    changed = {name for name, tensor in once.state.items() if not torch.equal(tensor, again.state[name])}
    require(not changed, f"{first(changed)} differs between two equal runs")


def finite_under_autocast(subject: ContractCase) -> None:
    """Loss and gradients stay finite under bf16 autocast, parameters stay float32, and what qkv gives stays bf16: a sum with a
    float32 parameter would have attention run at another precision, and memory, than under other methods."""
    segmenter, method = subject.trained()
    given: set[torch.dtype] = set()
    for name, module in segmenter.encoder.named_modules():
        if name.endswith(".attn.qkv"):
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
    """In evaluation an image's output does not depend on the others of its batch."""
    segmenter, _ = subject.trained()
    together = logits(segmenter, subject.images[:2])
    apart = torch.cat([logits(segmenter, subject.images[i : i + 1]) for i in range(2)])
    largest = float((together - apart).abs().max())
    require(largest <= BATCH_TOLERANCE[subject.decoder], f"two images together differ from one by one by {largest:.1e}")


def checkpointing(subject: ContractCase) -> None:
    """With activation checkpointing loss, gradients, buffers and random draws are the same, and backward keeps less."""
    seen = []
    sizes = []
    for recompute in (False, True):
        segmenter, method = subject.attached(recompute=recompute, seed=SEED)
        method.load_state(subject.training.state)
        loss, size = _loss_and_kept_bytes(subject, segmenter, method)
        sizes.append(size)
        _backward(loss, method)
        gradients = {n: p.grad.clone() for n, p in segmenter.named_parameters() if p.grad is not None}
        buffers = {n: b.clone() for n, b in segmenter.named_buffers()}
        seen.append((float(loss.detach()), gradients, buffers, method.generator.get_state()))
    (kept, gradients, buffers, generator), (again, gradients_, buffers_, generator_) = seen
    require(abs(kept - again) <= RECOMPUTE_TOLERANCE, f"the loss is {again}, without checkpointing {kept}")
    require(
        set(gradients) == set(gradients_), f"gradient appears or is lost: {first(set(gradients) ^ set(gradients_))}"
    )
    _require_close(gradients, gradients_, "gradient of")
    _require_close(buffers, buffers_, "buffer")
    require(torch.equal(generator, generator_), "recomputation draws from the method's generator again")
    fewer = sizes[1] < sizes[0] or not subject.config.trains_encoder  # a frozen one keeps nothing either way
    require(fewer, f"backward keeps {sizes[1]} bytes with checkpointing, {sizes[0]} without")


def _backward(loss: Tensor, method: Method) -> None:
    if method.config.trains:  # or no gradient goes anywhere
        loss.backward()


def _loss_and_kept_bytes(subject: ContractCase, segmenter: Segmenter, method: Method) -> tuple[Tensor, int]:
    """The loss, and the bytes of all storages besides parameters and buffers that its forward pass keeps for backward."""
    known = {
        tensor.untyped_storage()._cdata
        for tensor in (*segmenter.parameters(), *segmenter.buffers())
        if tensor.layout == torch.strided
    }
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = subject.loss(segmenter, method)
    return loss, sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in known)


def _require_close(plain: dict[str, Tensor], recomputed: dict[str, Tensor], what: str) -> None:
    for name, tensor in plain.items():
        if not tensor.is_floating_point():
            require(torch.equal(tensor, recomputed[name]), f"{what} {name} differs with checkpointing")
            continue
        largest = float((tensor - recomputed[name]).abs().max()) if tensor.numel() else 0.0
        require(largest <= RECOMPUTE_TOLERANCE, f"{what} {name} differs by {largest:.1e} with checkpointing")


BLOCKS = ("all", "first-half", "last-half", "global", "0")
SITES = ("qkv", "q,v", "q,k,v", "proj", "mlp", "proj,mlp")


def placement(subject: ContractCase) -> None:
    """``blocks`` and ``sites`` restrict the method to what they name, with the closed form's count; nonsense is refused."""
    names = {field.name for field in fields(subject.config)}
    if "blocks" not in names:
        return
    for blocks in BLOCKS:
        if blocks == "global" and not subject.shape.global_blocks:
            continue
        _require_blocks(_with(subject, blocks=blocks), blocks)
    for sites, placed in _placed_at(subject) if "sites" in names else ():
        segmenter = _require_count(placed, f"sites={sites}")
        with torch.no_grad():
            finite = math.isfinite(float(segmenter(subject.images[:2]).masks.sum()))
        require(finite, f"sites={sites}: the logits are not finite")
    for nonsense in ("no-such-blocks", str(subject.shape.depth)):
        with must_refuse(f"blocks={nonsense!r} is accepted"):
            _with(subject, blocks=nonsense).attached()


def _placed_at(subject: ContractCase) -> Iterator[tuple[str, ContractCase]]:
    """The sites that the configuration does not refuse."""
    for sites in SITES:
        try:
            yield sites, _with(subject, sites=sites)
        except MethodError:
            continue


def _require_blocks(subject: ContractCase, blocks: str) -> None:
    segmenter = _require_count(subject, f"blocks={blocks}")
    shape = subject.shape
    allowed = set(parse_blocks(blocks, depth=shape.depth, global_blocks=shape.global_blocks))
    for index, block in enumerate(segmenter.encoder.blocks):
        trains = any(parameter.requires_grad for parameter in block.parameters())
        require(index in allowed or not trains, f"blocks={blocks} trains in block {index}")


def _require_count(subject: ContractCase, what: str) -> Segmenter:
    try:
        segmenter, _ = subject.attached()
    except AttributeError as error:
        raise MethodError(f"{what} is accepted, but cannot be attached: {error}") from error
    placed = sum(p.numel() for p in segmenter.encoder.parameters() if p.requires_grad)
    expected = subject.config.encoder_parameters(subject.shape)
    require(placed == expected, f"with {what} {placed} parameters train, the closed form says {expected}")
    return segmenter


def _with(subject: ContractCase, **changes: Any) -> ContractCase:
    return replace(subject, config=replace(subject.config, **changes))


EPOCHS = 4


def schedule(subject: ContractCase) -> None:
    """`roles_at` and `passes_at` are pure: called twice, backwards, and after training they return the same."""
    _, method = subject.trained()
    _, fresh = subject.attached()
    moments = [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS)]
    answers = {moment: _at(fresh, *moment) for moment in moments}
    for epoch, step in reversed(moments):
        for each in (fresh, method):
            again = _at(each, epoch, step)
            before = answers[epoch, step]
            require(again == before, f"in epoch {epoch}, step {step} it says {before} first and {again} later")
    roles = {role for _, passes in answers.values() for updated in passes for role in updated}
    known = {group.role for group in fresh.parameter_groups()}
    require(roles <= known, f"updates {', '.join(sorted(roles - known))}, but no parameter group has that role")


def properties(subject: ContractCase) -> None:
    """What the configuration says of gradients and added parameters is what the attached model does."""
    plain = sum(p.numel() for p in subject.plain().encoder.parameters())
    segmenter, method = subject.attached()
    config, encoder = method.config, segmenter.encoder
    added = sum(p.numel() for p in encoder.parameters()) - plain
    declared = config.added_parameters(subject.shape)
    require(added == declared, f"adds {added} parameters to the encoder, its configuration says {declared}")
    trains = any(p.requires_grad for p in encoder.parameters())
    require(config.trains_encoder or not trains, "trains_encoder is False, but something in the encoder trains")
    first = config.gradient_from(subject.shape)
    reached = _blocks_with_gradient(subject, segmenter, method)
    below = [block for block in reached if first is None or block < first]
    says = "that no gradient passes the backbone, but it" if first is None else f"{first}, but gradient"
    require(not below, f"gradient_from says {says} reaches block {min(below, default=0)}")


def _at(method: Method, epoch: int, step: int) -> tuple[object, tuple[tuple[str, ...], ...]]:
    return method.roles_at(epoch=epoch, step=step), method.passes_at(epoch=epoch, step=step)


def _blocks_with_gradient(subject: ContractCase, segmenter: Segmenter, method: Method) -> set[int]:
    """Blocks whose output gets a gradient in backward, and which therefore backward passes or ends at."""
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
"""Relative, of ``exact`` and ``conv`` merges; ``calibrated`` approximates and only has to report its error truly."""


def declared_merges(subject: ContractCase) -> None:
    """Every declared mode merges within its tolerance and reports truly; every other mode is refused."""
    modes: tuple[MergeMode, ...] = ("exact", "conv", "calibrated")
    _, method = subject.attached()
    for mode in modes:
        if mode not in method.merge_modes:
            with must_refuse(f"{mode} is not among its merge modes and is accepted"):
                method.merge(mode, calibration=[subject.images], held_out=[subject.images])
            continue
        _merged(subject, mode)


def _merged(subject: ContractCase, mode: MergeMode) -> None:
    segmenter, method = subject.trained()
    calibration, held_out = subject.images[:2], subject.images[2:]
    before = logits(segmenter, held_out)
    report = method.merge(mode, calibration=[calibration], held_out=[held_out])
    after = logits(segmenter, held_out)
    largest, relative = float((after - before).abs().max()), float((after - before).norm() / before.norm())
    require(report.mode == mode, f"the report of {mode} says {report.mode}")
    if report.max_deviation is None or report.relative_deviation is None:
        raise Violation(f"{mode} reports no deviation although it was given held-out images")
    require(
        all(
            abs(reported - measured) <= 1e-6 + 1e-2 * measured
            for reported, measured in ((report.max_deviation, largest), (report.relative_deviation, relative))
        ),
        f"{mode} reports a deviation of {report.max_deviation:.2e} ({report.relative_deviation:.2e} relative); "
        f"measured {largest:.2e} ({relative:.2e})",
    )
    require(relative < float("inf"), f"{mode} gives outputs that are not finite")
    unknown = set(report.partly) - set(report.left)
    require(
        not unknown, f"{mode} reports {first(unknown)} as folded in part, but not among the sites that keep the rest"
    )
    whole = not report.left
    if mode != "calibrated":
        require(relative <= MERGE_TOLERANCE, f"{mode} changes the output by {relative:.1e} (relative)")
    extra = sum(p.numel() for p in segmenter.encoder.parameters()) - sum(
        p.numel() for p in subject.plain().encoder.parameters()
    )
    require(
        extra == report.extra_parameters,
        f"{mode} reports {report.extra_parameters} extra parameters, there are {extra}",
    )
    if whole and mode != "conv":
        _require_plain(subject, segmenter, report)


def _require_plain(subject: ContractCase, segmenter: Segmenter, report: MergeReport) -> None:
    """A whole merge is the plain backbone, for SAM's that of segment_anything's own modules: it loads strictly there and
    embeds images the same."""
    require(
        report.extra_parameters == 0,
        f"{report.mode} folds everything and still needs {report.extra_parameters} parameters",
    )
    plain = subject.plain()
    differ = segmenter.encoder.state_dict().keys() ^ plain.encoder.state_dict().keys()
    require(not differ, f"{report.mode} leaves names that a plain backbone does not have: {first(differ)}")
    encoder = plain.encoder
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
        f"the plain encoder embeds the {report.mode} merge differently by {largest:.1e}",
    )


CHECKS: dict[str, Check] = {
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
