"""The clauses on what a method declares without being run: its schedule, and the properties that pricing and tables read."""

from __future__ import annotations

from torch import Tensor

from harness.contract.case import ContractCase
from harness.contract.violation import require
from harness.methods.base import Method
from harness.models.segmenter import Segmenter

EPOCHS, STEPS = 4, 3


def schedule(subject: ContractCase) -> str:
    """`roles_at` and `passes_at` are pure: asked again, backwards, and after training they say the same."""
    _, method = subject.trained()
    _, fresh = subject.attached()
    moments = [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS)]
    answers = {moment: _at(fresh, *moment) for moment in moments}
    for epoch, step in reversed(moments):
        for asked in (fresh, method):
            again = _at(asked, epoch, step)
            first = answers[epoch, step]
            require(again == first, f"in epoch {epoch}, step {step} it says {first} first and {again} later")
    roles = {role for _, passes in answers.values() for updated in passes for role in updated}
    known = {group.role for group in fresh.parameter_groups()}
    require(roles <= known, f"updates {', '.join(sorted(roles - known))}, but no parameter group has that role")
    return "pure"


def properties(subject: ContractCase) -> str:
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
    if first is None:
        require(
            not reached,
            f"gradient_from says that no gradient passes the backbone, but it reaches block {min(reached, default=0)}",
        )
    else:
        require(
            min(reached, default=first) >= first,
            f"gradient_from says {first}, but gradient reaches block {min(reached, default=0)}",
        )
    return "as declared"


def _at(method: Method, epoch: int, step: int) -> tuple[object, tuple[tuple[str, ...], ...]]:
    return (
        method.roles_at(epoch=epoch, step=step),
        method.passes_at(epoch=epoch, step=step),
    )


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
