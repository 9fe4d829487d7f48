"""The contract that every method fulfils, built in or plugged in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.methods.configs import MethodConfig
from harness.methods.parts.merging import MergeReport, deviation, predictions
from harness.methods.parts.placement import MethodError
from harness.methods.parts.sites import Adaptable, as_adaptable

Role = Literal["weights", "architecture"]
MergeMode = Literal["exact", "conv", "calibrated"]

WEIGHTS: Role = "weights"
ARCHITECTURE: Role = "architecture"


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that one optimiser updates.

    Args:
        role: ``weights`` or ``architecture``.
        named: parameters by their full name in the segmenter.
        lr: learning rate of the group, None for the protocol's.
        weight_decay: None for the protocol's.
        lr_factor: multiplies the rate, the protocol's too.
        betas: of an Adam of the role's own at a constant rate, as DARTS gives its architecture; None for the protocol's
            optimiser, betas and schedule.
    """

    role: Role
    named: dict[str, nn.Parameter]
    lr: float | None = None
    weight_decay: float | None = None
    lr_factor: float = 1.0
    betas: tuple[float, float] | None = None


class Method(ABC):
    """One way to adapt a segmenter.

    Life of a method: construct with a configuration, `attach` once, train what `parameter_groups` names, optionally
    `merge`.

    Args:
        config: an instance of ``config_class``.
        seed: seeds the method's own generator and nothing else, so that adding a method never shifts another's stream.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[MethodConfig]]
    packages: ClassVar[tuple[str, ...]] = ()
    """Installed packages whose version decides what it does, and which a record names."""
    paper: ClassVar[str] = ""
    """arXiv id, or where it is described, for the doctor's table."""
    lacks: ClassVar[Mapping[str, str]] = {}
    """Clause of the contract that it does not hold -> why."""
    merge_modes: tuple[MergeMode, ...] = ()
    """Modes that `merge` takes. An instance may override its class where that depends on the configuration."""
    identity_at_init: bool = True
    """Whether the attached segmenter's output equals the plain one's before training; False is a declared deviation.
    An instance may override its class where that depends on the configuration."""

    def __init__(self, config: MethodConfig, *, seed: int = 0) -> None:
        if not isinstance(config, self.config_class):
            raise MethodError(f"{self.name} takes a {self.config_class.__name__}, not a {type(config).__name__}")
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self._segmenter: nn.Module | None = None
        self._inserted_buffers: set[str] = set()
        self._merged = False

    @property
    def segmenter(self) -> nn.Module:
        """The segmenter this method is attached to."""
        if self._segmenter is None:
            raise MethodError(f"{self.name} is not attached to a segmenter yet; call attach(segmenter) first")
        return self._segmenter

    def attach(self, segmenter: nn.Module) -> None:
        """Freeze the segmenter, insert the method's modules, and mark what trains: those, and mask decoder and head.

        Raises:
            MethodError: the placement does not fit the backbone, or the method is attached already.
        """
        if self._segmenter is not None:
            raise MethodError(f"{self.name} is attached already; construct a new one for another segmenter")
        adaptable = as_adaptable(segmenter)
        if adaptable is None:
            kind = type(segmenter).__name__
            raise MethodError(
                f"{self.name} attaches to a segmenter with encoder and decoder_parameters(), not to {kind}"
            )
        segmenter.requires_grad_(False)
        before = {id(buffer) for buffer in segmenter.buffers()}
        self._insert(adaptable)
        kept = segmenter.state_dict().keys()
        self._inserted_buffers = {
            name
            for name, buffer in segmenter.named_buffers()
            if name in kept and buffer.numel() and id(buffer) not in before
        }
        for _, parameter in self._trained_besides(adaptable):
            parameter.requires_grad_(True)
        self._segmenter = segmenter

    @property
    def start_images(self) -> int:
        """How many training images `start_from` needs; 0 for a start that depends on no data."""
        return 0

    def start_from(self, passes: Iterable[object]) -> None:  # noqa: B027 - optional, most have none
        """Set what starts from data, once, before the first update of a run; a resumed run has it in its state.

        Args:
            passes: iterating makes one forward pass after the other of the attached segmenter, over `start_images` training images or
                somewhat more, in evaluation mode and without gradient.
        """

    @abstractmethod
    def _insert(self, segmenter: Adaptable) -> None:
        """Insert the method's modules into the frozen segmenter and set ``requires_grad`` on what trains in the
        encoder."""

    def _trained_besides(self, segmenter: Adaptable) -> Iterable[tuple[str, nn.Parameter]]:
        """What trains besides the method's own: mask decoder, neck and head, as for every method."""
        return segmenter.decoder_parameters()

    def parameter_groups(self) -> list[ParameterGroup]:
        """Everything that trains, by role. A stage-wise method adds a group with role ``architecture``."""
        named = {name: p for name, p in self.segmenter.named_parameters() if p.requires_grad}
        return [ParameterGroup(role=WEIGHTS, named=named, lr=self.config.lr)]

    def roles_at(self, *, epoch: int, step: int) -> tuple[Role, ...]:
        """Which roles the optimiser step ``step`` (0-based, within ``epoch``, 0-based) updates; the others' gradients
        are dropped.

        One role a step where a method is stage-wise, both where weights and architecture are learnt jointly. A pure
        function of its arguments: it is called ahead of time, after an interruption, and in any order.
        """
        return (WEIGHTS,)

    def after_update(self, *, epoch: int, step: int, total: int) -> None:  # noqa: B027 - optional, most have none
        """Called when the step ``step`` of ``epoch`` has updated what it updates, with the number of steps of the whole
        run: the place for what acts on the trained weights themselves, such as pruning ranks. Gradients are still there. It
        must depend on its arguments and on what `state` holds alone, so that a resumed run does the same."""

    def passes_at(self, *, epoch: int, step: int) -> tuple[tuple[Role, ...], ...]:
        """The forward and backward passes of ``step``, in order, each with the roles that it updates.

        One pass, that of `roles_at`, unless a method updates architecture and weights one after the other. In a step of
        several passes each has a batch of its own: the weights' is that of every method, and the architecture's goes
        through its images in an order of its own.
        """
        return (self.roles_at(epoch=epoch, step=step),)

    def architecture_holdout(self) -> float:
        """Fraction of the training split that gives the batches of role ``architecture`` and that steps of role ``weights`` never see.

        It is 0 where every step uses the whole training split (joint methods, and methods without architecture).
        """
        return 0.0

    def architecture_masks_shuffled(self) -> bool:
        """Whether steps of role ``architecture`` see each image with the mask of another one, as a control."""
        return False

    def auxiliary_loss(self) -> Tensor | None:
        """A term to add to the task loss after a forward pass (such as a balance loss), or None."""
        return None

    def may_idle(self, name: str) -> bool:
        """Whether the trained parameter ``name`` may go without gradient for many steps, as an expert of a routed
        mixture may."""
        return False

    def architecture(self) -> dict[str, list[float]]:
        """Architecture weights by site for the record's history, empty where there are none."""
        return {}

    def decode(self) -> bool:
        """After training keep only the strongest of what was searched, at full weight, in place and without further training.

        Returns whether there was a choice.
        """
        return False

    def own_buffers(self) -> Iterable[str]:
        """Full names of buffers that belong to the method: those of modules that it inserted, such as running statistics of its own norms,
        but for what is not persistent."""
        return [name for name, _ in self.segmenter.named_buffers() if name in self._inserted_buffers]

    def _tensors(self) -> dict[str, Tensor]:
        """What training changes, by full name in the segmenter."""
        buffers = set(self.own_buffers())
        tensors: dict[str, Tensor] = {name: p for name, p in self.segmenter.named_parameters() if p.requires_grad}
        return tensors | {name: buffer for name, buffer in self.segmenter.named_buffers() if name in buffers}

    def state(self) -> dict[str, Tensor]:
        """What training changed, by full name in the segmenter: trained parameters and the method's own buffers,
        detached copies."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put a `state` back; strict in names and shapes, but for buffers that are not persistent, which older states of NAS-LoRA hold.

        Raises:
            MethodError: names or shapes differ; the message holds the first of each.
        """
        tensors, kept = self._tensors(), self.segmenter.state_dict().keys()
        passing = {name for name, _ in self.segmenter.named_buffers() if name not in kept}
        state = {name: tensor for name, tensor in state.items() if name not in passing}
        missing, unexpected = sorted(tensors.keys() - state.keys()), sorted(state.keys() - tensors.keys())
        if missing or unexpected:
            raise MethodError(
                f"state does not belong to this {self.name}: missing {missing[:3]}, unexpected {unexpected[:3]}"
            )
        for name, tensor in tensors.items():
            if tensor.shape != state[name].shape:
                actual, needed = tuple(state[name].shape), tuple(tensor.shape)
                raise MethodError(f"state of {name}: shape {actual}, this {self.name} needs {needed}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(state[name])

    def merge(
        self, mode: MergeMode = "exact", *, calibration: Sequence[Tensor] = (), held_out: Sequence[Tensor] = ()
    ) -> MergeReport:
        """Fold the method into the backbone, in place.

        Args:
            mode: ``exact`` folds what is linear per token into the backbone's weights; ``conv`` turns a linear cell
                into one convolution; ``calibrated`` fits a least-squares map on ``calibration`` and folds it.
            calibration: batches (B, 3, H, W) of training images; needed by ``calibrated``.
            held_out: batches on which the deviation is measured.

        Raises:
            MethodError: this method has no such mode, or is merged already.
        """
        if mode not in self.merge_modes:
            modes = f"its modes are {', '.join(self.merge_modes)}" if self.merge_modes else "it has no merge mode"
            raise MethodError(f"{self.name} cannot be merged ({mode}): {modes}")
        if self._merged:
            raise MethodError(f"{self.name} is merged already; attach it to a fresh segmenter and load its state first")
        before = predictions(self.segmenter, held_out)
        done = self._fold(mode, calibration)
        self._merged = True
        done.mode = mode
        done.max_deviation, done.relative_deviation = deviation(before, predictions(self.segmenter, held_out))
        return done

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> MergeReport:
        """What `merge` does in one of ``merge_modes``; methods that have any say how. Raises MethodError: this one does not."""
        raise MethodError(
            f"{self.name} names the merge mode {mode}, and its class has no _fold(mode, calibration) that does it"
        )
