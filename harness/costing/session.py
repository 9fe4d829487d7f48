"""A session of cost measurements: its rules, device and clock, and its methods, each on its own segmenter, ready to take training steps
that are timed part by part. A method that fails is dropped with its reason, and the session goes on with the others."""

from __future__ import annotations

import gc
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.costing.instruments import clock_of, flop_counter
from harness.experiment.building import attention_of
from harness.experiment.environment import one_line, reason_code
from harness.methods.base import WEIGHTS, Method, Role
from harness.models.attention_choice import Choice
from harness.models.decoders import Task
from harness.planning.plan import ConfiguredRow
from harness.protocols.protocol import Protocol
from harness.system.errors import UsageError, out_of_memory
from harness.training.batches import UpdatePlan, hold_out
from harness.training.cache import EmbeddingCache, InMemory
from harness.training.feeding import Feeder
from harness.training.loop import planned_steps
from harness.training.step import StepPart, TrainingStep

T = TypeVar("T")
N = TypeVar("N", int, float)

CACHED = "cached"
"""Suffix of a role whose steps find the frozen encoder's embeddings in the cache."""
PARTS = ("total", "data", "forward", "backward", "optimiser", "untracked")
_NOMINAL_STEPS = 100


class RandomImages:
    """Noise in place of a training split, since cost does not depend on what images show. Images are (count, 3, S, S) uint8 with
    S = ``image_size``, masks (S, S) with ``num_classes``. With ``labels``, a mask is one class per image, (1, 1)."""

    def __init__(self, count: int, *, image_size: int, num_classes: int, labels: bool = False) -> None:
        source = np.random.default_rng(0)
        self._images = source.integers(0, 256, (count, 3, image_size, image_size), dtype=np.uint8)
        # Blocks of one class each, so that the loss meets regions with boundaries.
        coarse = source.integers(0, num_classes, (count, 8, 8), dtype=np.uint8)
        at = np.arange(image_size) * 8 // image_size
        self._masks = coarse[:, :1, :1] if labels else np.ascontiguousarray(coarse[:, at][:, :, at])

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> NDArray[np.uint8]:
        return self._images[index]

    def mask_input(self, index: int) -> NDArray[np.uint8]:
        return self._masks[index]


@dataclass(frozen=True)
class StepKind:
    """A kind of training step.

    Args:
        roles: which parameters it updates.
        cached: the encoder's embedding is in the cache.
    """

    roles: tuple[Role, ...]
    cached: bool = False

    @property
    def name(self) -> str:
        return "+".join(self.roles) + (f"-{CACHED}" if self.cached else "")


class Subject:
    """A method to measure.

    Args:
        label: label of its row.
        segmenter: with ``method`` attached, on the session's device.
    """

    def __init__(self, label: str, *, segmenter: nn.Module, method: Method, session: Session) -> None:
        protocol, device, task = session.protocol, session.device, session.task
        self.label = label
        self.segmenter: Any = segmenter
        self.models: dict[str, Any] = {}  # for inference: unmerged, and by merge mode
        self.method = method
        self.protocol = protocol
        self.device = device
        self.clock = clock_of(session.clock, device)
        self._step = TrainingStep.of(method, protocol, task=task, num_classes=session.num_classes, device=device)
        batches = 2 if method.architecture_holdout() else 1
        images = RandomImages(
            batches * protocol.batch_size,
            image_size=protocol.image_size,
            num_classes=session.num_classes,
            labels=task == "classification",
        )
        self._plan = UpdatePlan(indices=range(len(images)), batch_size=protocol.batch_size)
        caching = not method.config.trains_encoder and protocol.cache_embeddings and not protocol.augment
        self._cache = EmbeddingCache(encoder="cost", store=InMemory()) if caching else None
        feed: Any = {"plan": self._plan, "protocol": protocol, "device": device}
        self._feeders = {
            cache: Feeder(segmenter, images, embeddings=cache, **feed) for cache in dict.fromkeys((None, self._cache))
        }
        self._prepared: set[Feeder] = set()
        self._steps = self._updates = 0

    def shares(self) -> dict[StepKind, float]:
        """Every kind of pass with its average number per step over a whole training; the sum exceeds one where a step has
        several passes."""
        epochs, (steps, per_epoch) = self.protocol.epochs, self.steps_of_a_training
        roles = Counter(
            roles
            for epoch, step in (divmod(number, per_epoch) for number in range(steps))
            for roles in self._step.passes(epoch=epoch, step=step)
        )
        shares = {StepKind(chosen): count / steps for chosen, count in roles.items()}
        if self._cache is None:
            return shares
        # Every image is encoded once, with flips once per orientation, whatever the number of epochs.
        encoded = min((2 if self.protocol.flip else 1) / epochs, 1.0)
        return {
            **{phase: share * encoded for phase, share in shares.items()},
            **{StepKind(phase.roles, cached=True): share * (1 - encoded) for phase, share in shares.items()},
        }

    @cached_property
    def steps_of_a_training(self) -> tuple[int, int]:
        """Steps on a split of `_NOMINAL_STEPS` batches: those of the whole training, and those of an epoch."""
        kept, _ = hold_out(_NOMINAL_STEPS, self.method.architecture_holdout(), seed=0)
        plan = UpdatePlan(indices=kept, batch_size=1)
        image_by_image = replace(self.protocol, epoch_images=0, batch_size=1, accumulate=1)
        return planned_steps(self.method, plan, image_by_image, images=_NOMINAL_STEPS), plan.updates_per_epoch

    def step(self, phase: StepKind) -> dict[str, float]:
        """One update; part -> seconds, with ``total`` and ``untracked``."""
        at = self._pass(phase, self.clock)
        self._update(phase)
        updated = self.clock()
        seconds = {
            "data": at["taken"] - at["begun"],
            "forward": at["forward"] - at["started"],
            "backward": at["backward"] - at["forward"],
            "optimiser": updated - at["backward"],
        }
        total = updated - at["begun"]
        return {**seconds, "total": total, "untracked": total - sum(seconds.values())}

    def _pass(self, phase: StepKind, read: Callable[[], N]) -> dict[str, N]:
        """Compute loss and gradients of one update. Returns what ``read`` gave before its batches were taken (``begun``), once they were
        (``taken``), before the computation (``started``), and after ``forward`` and ``backward``."""
        feeder = self._begin(phase)
        at = {"begun": read()}
        batches = feeder.take()[0]
        at["taken"] = read()
        self._prepare(feeder)  # loads during the computation, as in training
        at["started"] = read()

        def note(part: StepPart) -> None:
            at[part] = read()

        self._step.gradients(phase.roles, batches, predict=feeder.predict, after=note)
        return at

    def _update(self, phase: StepKind) -> None:
        """The optimisers' step, and what the method then does to its weights."""
        self._step.update(phase.roles)
        if WEIGHTS in phase.roles:
            total, per_epoch = self.steps_of_a_training
            epoch, step = divmod(self._updates % total, per_epoch)
            self.method.after_update(epoch=epoch, step=step, total=total)
            self._updates += 1
        self._step.clear(phase.roles)

    def _begin(self, phase: StepKind) -> Feeder:
        """Set the modes of training; returns the feeder for a kind of step."""
        self.segmenter.train()
        if not self.method.config.trains_encoder:
            self.segmenter.encoder.eval()
        feeder = self._feeders[self._cache if phase.cached else None]
        if feeder not in self._prepared:
            self._prepare(feeder)
        return feeder

    def _prepare(self, feeder: Feeder) -> None:
        feeder.prepare(0, self._steps % self._plan.updates_per_epoch)
        self._prepared.add(feeder)
        self._steps += 1

    def resident(self) -> dict[str, list[Tensor]]:
        """Tensors that stay between steps: ``weights`` (and buffers) and ``optimiser`` state."""
        states = (
            value
            for optimiser in self._step.optimisers.values()
            for state in optimiser.state.values()
            for value in state.values()
        )
        return {
            "weights": [*self.segmenter.parameters(), *self.segmenter.buffers()],
            "optimiser": [value for value in states if isinstance(value, Tensor)],
        }

    def step_watched(self, phase: StepKind, *, live: Callable[[], int]) -> tuple[int, int]:
        """Make an update, during which ``live`` counts bytes. Returns those kept from forward to backward, and those of gradients."""
        at = self._pass(phase, live)
        parameters = self._step.parameters(phase.roles)
        gradients = sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
        self._update(phase)
        return at["forward"] - at["started"], gradients

    def count_flops(self, phase: StepKind) -> tuple[int, int]:
        """FLOPs of an update's forward and of its backward pass."""
        with flop_counter() as counter:
            at = self._pass(phase, counter.get_total_flops)
        self._step.clear(phase.roles)
        return at["forward"], at["backward"] - at["forward"]

    def close(self) -> None:
        for feeder in self._feeders.values():
            feeder.__exit__(None, None, None)


@dataclass(frozen=True, kw_only=True)
class Session:
    """The measurement to make.

    Args:
        rows: the methods, in the order in which they take turns.
        checkpoint: the backbone's weights, None for random ones; cost hardly depends on them.
        protocol: the rules, with image size and batch size.
        task, num_classes: of the benchmark that the data imitate.
        shared: who else uses the device, in words.
        clock: ``wall``, or ``processor`` for a CPU that others use as well.

    Raises:
        UsageError: two rows have the same name, or the clock does not fit the device.
    """

    rows: Sequence[ConfiguredRow]
    backbone: str
    checkpoint: Path | None
    protocol: Protocol
    task: Task = "binary"
    num_classes: int = 2
    rounds: int = 9
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shared: str = ""
    clock: Literal["wall", "processor"] = "wall"

    def __post_init__(self) -> None:
        names = [row.label for row in self.rows]
        if len(set(names)) < len(names):
            raise UsageError(f"two of {', '.join(names)} have the same name; give their options in brackets")
        clock_of(self.clock, self.device)

    @cached_property
    def attention(self) -> Choice:
        """How SAM's blocks attend, the same for all methods."""
        return attention_of(self.backbone, self.protocol, self.device)


class Roster:
    """The subjects of a session by the label of their row, in the order of their turns. ``dropped``: label -> why it failed, which
    is also passed to ``report`` as a line."""

    def __init__(self, *, report: Callable[[str], None]) -> None:
        self.subjects: dict[str, Subject] = {}
        self.dropped: dict[str, str] = {}
        self._report = report
        self._frozen: defaultdict[tuple[Any, ...], list[weakref.ref[Tensor]]] = defaultdict(list)

    def share_frozen(self, *models: nn.Module) -> None:
        """Let equal frozen weights of the session's models share memory: every method has the whole backbone, and a large
        one does not fit on a device twenty times."""
        for weight in (weight for model in models for weight in model.parameters()):
            if weight.requires_grad:
                continue
            candidates = self._frozen[
                weight.shape, weight.stride(), weight.dtype, float(weight.sum(dtype=torch.float64))
            ]
            living = (other for reference in candidates if (other := reference()) is not None)  # not of dropped methods
            if (donor := next((other for other in living if torch.equal(other, weight)), None)) is not None:
                weight.data = donor.data
            candidates.append(weakref.ref(weight))

    def each(self, work: Callable[[Subject], T]) -> dict[str, T]:
        """The results of ``work`` by label, in turn; a row for which it fails is dropped."""
        results = {}
        for label in list(self.subjects):
            with self.turn(label):
                # No name of the subject here: it would outlive the turn, which frees it.
                results[label] = work(self.subjects[label])
        return results

    @contextmanager
    def turn(self, label: str) -> Iterator[None]:
        """A context for the turn of a row: a failure in it drops the row and frees its memory. Raises UsageError: the command
        itself is wrong, for all methods."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:  # a method's code may raise anything, and the others' measurements are worth keeping
            others = len(self.subjects.keys() - {label})
            hint = f" (with {others} more of --methods: fewer in a session leave more room)" if others else ""
            self.dropped[label] = why(error) + (hint if out_of_memory(error) else "")
        if label not in self.dropped:
            return
        self._report(f"{label} is dropped: {self.dropped[label]}")
        if subject := self.subjects.pop(label, None):
            subject.close()
        del subject
        release()

    def close(self) -> None:
        for subject in self.subjects.values():
            subject.close()


def why(error: Exception) -> str:
    """``OOM: …`` or ``ERROR: …``, one line."""
    return f"{reason_code(error)}: {one_line(error)}"


def release() -> None:
    """Give freed memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
