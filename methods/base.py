"""The contract that every method fulfils, built in or plugged in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from harness.methods.parts.merging import MergeReport, deviation, predictions
from harness.methods.parts.placement import BackboneShape, BlockShape, MethodError, parse_blocks
from harness.methods.parts.sites import Adaptable

Role = Literal["weights", "architecture"]
MergeMode = Literal["exact", "conv", "calibrated"]

WEIGHTS: Role = "weights"
ARCHITECTURE: Role = "architecture"
Count = Annotated[int, "a whole number above zero"]
Positive = Annotated[float, "above zero"]


@cache
def _kinds(config: type) -> dict[str, Any]:
    hints = get_type_hints(config, include_extras=True)
    return {field.name: hints[field.name] for field in fields(config)}


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of all configurations.

    Args:
        lr: learning rate of the weights, None for the protocol's.
    """

    lr: Positive | None = None

    def __post_init__(self) -> None:
        """Raises MethodError: a field whose type is a choice, a `Count` or a `Positive` has a value outside it."""
        for name, kind in _kinds(type(self)).items():  # type: ignore[arg-type]  # a class is hashable
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise MethodError(f"{name}={value!r}: choose {' or '.join(get_args(kind))}")
            if kind == Count and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise MethodError(f"{name}={value}: must be a whole number above zero")
            if Positive in (kind, *get_args(kind)) and value is not None and not value > 0:
                raise MethodError(f"{name}={value}: must be above zero")

    weight_products: ClassVar[int] = 0
    """How many matrix products of an adapted layer's size training adds: one where the gradient of whole weights is needed."""

    trains: ClassVar[bool] = True
    """Whether a run trains anything; where it does not, the pretrained segmenter is tested as it is."""

    quirks: ClassVar[Mapping[str, str]] = {}
    """Option -> the quirk of the protocol that gives its default."""

    @property
    def spares_weight_updates(self) -> bool:
        """Whether the weights get fewer updates than the iterations of an epoch over the whole training split: some go
        to the architecture, or the architecture has images that the weights never see."""
        return False

    @property
    def label_note(self) -> str:
        """What a table adds to the method's name where the row is not what a reader expects under that name."""
        return ""

    def never_reached(self, epochs: int) -> str:
        """Which part of the method a run of this many epochs never reaches, in words; empty where it reaches all of it."""
        return ""

    @property
    def mixed_operations(self) -> tuple[str, ...]:
        """Names of the operations that α weights, in the order of its shares; empty for a method without α."""
        return ()

    def passes(self, *, epochs: int, of_updates: bool) -> float:
        """Forward and backward passes of a run, as a multiple of those of ``epochs`` epochs with one pass a step.

        Args:
            of_updates: the run goes on until the weights have had as many updates as these epochs have steps.
        """
        return 1.0

    @property
    def trains_encoder(self) -> bool:
        """Whether anything in the encoder trains; where nothing does, an image's embedding is computed once and kept."""
        return True

    @property
    def trains_backbone_weights(self) -> bool:
        """Whether the backbone's own matrices train, so that backward needs their gradients and the inputs of every
        linear layer."""
        return False

    def encoder_parameters(self, shape: BackboneShape) -> int:
        """Trainable parameters in the encoder, mask decoder not counted."""
        raise NotImplementedError

    @property
    def freezes_decoder(self) -> bool:
        """Whether the mask decoder is frozen. What the method adds to it still trains, and so does what is new to a benchmark or a
        backbone: class head, neck after a timm ViT, further mask tokens."""
        return False

    def decoder_parameters(self, linears: Sequence[tuple[int, int]]) -> int:
        """Parameters that the method adds to a frozen mask decoder with ``linears`` (inputs, outputs)."""
        return 0

    def added_parameters(self, shape: BackboneShape) -> int:
        """Trainable parameters in the encoder beyond those of the plain backbone."""
        return self.encoder_parameters(shape)

    def adapted(self, shape: BackboneShape) -> list[tuple[int, int]]:
        """(inputs, outputs) of every linear map of the encoder that it adapts; nothing for a method on other parts."""
        return []

    def gradient_from(self, shape: BackboneShape) -> int | None:
        """The first block that the backward pass reaches, None where no gradient flows through the backbone."""
        return 0


@dataclass(frozen=True, kw_only=True)
class PlacedConfig(MethodConfig):
    """A method that acts on chosen blocks. See `harness.methods.parts.placement` for the grammar."""

    blocks: str = "all"

    def placed(self, shape: BackboneShape) -> list[BlockShape]:
        """The blocks that it acts on."""
        indices = parse_blocks(self.blocks, depth=shape.depth, global_blocks=shape.global_blocks)
        return [shape.blocks[index] for index in indices]

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return parse_blocks(self.blocks, depth=shape.depth, global_blocks=shape.global_blocks)[0]


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that one optimiser updates.

    Args:
        role: ``weights`` or ``architecture``.
        named: parameters by their full name in the segmenter.
        lr: learning rate of the group, None for the protocol's.
        weight_decay: None for the protocol's.
    """

    role: Role
    named: dict[str, nn.Parameter]
    lr: float | None = None
    weight_decay: float | None = None


class Method(ABC):
    """One way to adapt a segmenter.

    Life cycle of a method: construct with a configuration, `attach` once, train what `parameter_groups` names, optionally
    `merge`.

    Args:
        config: an instance of ``config_class``.
        seed: seeds the method's own generator and nothing else, so that adding a method never changes the random numbers of another.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[MethodConfig]]
    packages: ClassVar[tuple[str, ...]] = ()
    """Installed packages whose versions affect what it computes; a record names them."""
    paper: ClassVar[str] = ""
    """arXiv id, or where it is described, for the doctor's table."""
    lacks: ClassVar[Mapping[str, str]] = {}
    """Clause of the contract that it does not fulfil -> why."""
    merge_modes: tuple[MergeMode, ...] = ()
    """Modes that `merge` takes. An instance may override its class where that depends on the configuration."""
    identity_at_init: bool = True
    """Whether the attached segmenter's output equals the plain one's before training; False is a declared deviation.
    An instance may override its class where that depends on the configuration."""
    segmenter: nn.Module
    """The segmenter that it is attached to."""

    def __init__(self, config: MethodConfig, *, seed: int = 0) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self._inserted_buffers: set[str] = set()
        self._merged = False

    def attach(self, segmenter: nn.Module) -> None:
        """Freeze the segmenter, insert the method's modules, and mark what trains: those, and mask decoder and head.

        Args:
            segmenter: an `Adaptable`.

        Raises:
            MethodError: the placement does not fit the backbone, or the method is attached already.
        """
        if hasattr(self, "segmenter"):
            raise MethodError(f"{self.name} is attached already; construct a new one for another segmenter")
        adaptable = cast(Adaptable, segmenter)
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
        self.segmenter = segmenter

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

    def after_update(self, *, epoch: int, step: int, total: int) -> None:  # noqa: B027 - optional, most have none
        """Called after the update of step ``step`` in ``epoch``, with the number of steps of the whole run: for changes of the trained
        weights themselves, such as pruning ranks. Gradients are still available. It may depend only on its arguments and on what
        `state` holds, so that a resumed run does the same."""

    def passes_at(self, *, epoch: int, step: int) -> tuple[tuple[Role, ...], ...]:
        """The forward and backward passes of the optimiser step ``step`` (0-based, within ``epoch``, 0-based), in order, each with the
        roles that it updates; the others' gradients are dropped.

        One pass with one role where a method is stage-wise, one with both where weights and architecture are learnt jointly. In a
        step of several passes each has a batch of its own: the weights' is that of every method, and the architecture's goes through
        its images in an order of its own. A pure function of its arguments, since it is called ahead of time, after an
        interruption, and in any order.
        """
        return ((WEIGHTS,),)

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
        """Full names of buffers that belong to the method: those of modules that it inserted, such as running statistics of its own norms;
        persistent ones only."""
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
        """Put a `state` back; strict in names and shapes.

        Raises:
            MethodError: names or shapes differ; the message holds the first of each.
        """
        tensors = self._tensors()
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
        """The work of `merge` in one of ``merge_modes``; methods with such modes implement it."""
        raise NotImplementedError(f"the class of {self.name} has no _fold(mode, calibration)")
