"""The training loop: epochs of updates, validation, selection, checkpoints, and exact resume.

A *step* trains on one batch of images, in ``accumulate`` forward passes of the network. It has one *pass* for each set of roles that it
updates: two where weights and α alternate. An *update of the weights* is a pass whose roles hold them; the budget counts those.

Everything random is a function of (seed, epoch, step), the learning rate is a function of the update's index, and checkpoints are written
between updates. So a restarted process repeats the updates since its last checkpoint with the same numbers. On a CPU it ends with
bit-identical weights and metrics, for the same number of threads. On a GPU results agree up to rounding: attention, pooling and
resizing have no fast deterministic backward pass there.

The host reads two numbers per update, loss and gradient norm; on a GPU it does so while the next update is being computed. Losses of
several classes, Conv-LoRA's router, AdaLoRA's allocation of ranks and fp16's scaler make it wait within an update as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from harness.evaluation.conventions import improves
from harness.methods.base import ARCHITECTURE, WEIGHTS, Method, Role
from harness.methods.parts.placement import MethodError
from harness.models.decoders import Task
from harness.models.device import peak_bytes, reset_peak, to_host
from harness.protocols.protocol import Protocol
from harness.system.errors import UsageError
from harness.training.batches import TrainingImages, UpdatePlan, draw_number, hold_out
from harness.training.cache import EmbeddingCache, encoder_is_frozen
from harness.training.checkpoint import BEST, LAST, CheckpointFile, Position, copied, write_state
from harness.training.feeding import LOOKAHEAD, Feeder
from harness.training.optimisers import set_learning_rate
from harness.training.outcome import Diverged, Interrupted, StopRequest
from harness.training.step import TrainingStep

MOST_STEPS = 1000
"""Most steps per update of the weights; a method that takes more is taken to never update them."""


def planned_steps(method: Method, plan: UpdatePlan, protocol: Protocol, *, images: int) -> int:
    """Steps of the whole run.

    ``budget=epochs``: those of the protocol's epochs. ``budget=updates``: as many as the weights need for the updates that the
    protocol's epochs over all ``images`` have. Zero where nothing trains.
    """
    if not method.config.trains:
        return 0
    if protocol.budget == "epochs" or not method.config.spares_weight_updates:
        return plan.updates_per_epoch * protocol.epochs
    updates = protocol.updates(images)
    total = done = 0
    while done < updates:
        epoch, step = divmod(total, plan.updates_per_epoch)
        done += sum(WEIGHTS in roles for roles in method.passes_at(epoch=epoch, step=step))
        total += 1
        if total > MOST_STEPS * updates:
            raise MethodError(f"{method.name} does not give its weights {updates} updates within {total} steps")
    return total


def learning_rate_factor(
    update: int, *, total: int, kind: Literal["linear", "cosine", "constant"], warmup: int = 0
) -> float:
    """Factor in [0, 1] on every group's learning rate at ``update`` (0-based, of ``total``).

    Warm-up: (update + 1) / warmup for the first ``warmup`` updates. Then, with t the fraction done of the rest: linear
    1 − t, cosine (1 + cos πt) / 2, constant 1. The first update after warm-up has factor 1; linear and cosine reach
    zero after the last update.
    """
    if update < warmup:
        return (update + 1) / warmup
    done = (update - warmup) / max(1, total - warmup)
    if kind == "linear":
        return max(0.0, 1 - done)
    if kind == "cosine":
        return (1 + math.cos(math.pi * min(1.0, done))) / 2
    return 1.0


WARMUP_STEPS = 3
"""Updates after the start of each attempt that the median step time excludes: allocators, kernels and files are still cold."""


class _Pass(NamedTuple):
    """A pass whose numbers the host has not read yet. ``numbers`` waits for its loss and gradient norm; ``where`` is for messages."""

    numbers: Callable[[], Tensor]
    roles: tuple[Role, ...]
    rates: list[float]
    where: str
    waited: float
    timed: bool


@dataclass(kw_only=True)
class Training:
    """The training of one run: what is trained, on which images, and by which rules. Call `run` once.

    Args:
        segmenter: on ``device``, with ``method`` attached: images (B, 3, S, S) to low-resolution logits.
        images: the training split at the network's input size.
        task, num_classes: of the benchmark; they choose the loss.
        seed: of batch order, flips and the method's noise.
        folder: the run's state folder.
        identity: the run's key.
        data: the fingerprint of its files, empty if unknown: a run whose files changed starts over.
        code: fingerprint of the code; a checkpoint of other code is continued, and the record says so.
        machine: such as ``NVIDIA H100, torch 2.6.0``; a checkpoint of another one is continued, and the record says so.
        validate: scores the segmenter on validation; called in evaluation mode without gradient.
        metric: the score of ``validate`` that chooses the best epoch.
        embeddings: cache of a frozen encoder's embeddings; None to compute them every time.
        stop: requests an early, resumable end.
        report: called with ``kind`` (``step`` after an update, ``epoch``, ``checkpoint`` after writing one, ``note`` for a line of
            ``text``), ``epoch`` and ``epochs`` (1-based), ``step`` and ``steps`` (done in the epoch), ``loss`` (of the update, or the
            epoch's mean), ``rate`` (latest one of the weights), ``seconds`` (in the epoch's updates so far) and an epoch's validation
            ``metrics``.

    Raises:
        UsageError: the protocol does not fit the task.
    """

    segmenter: nn.Module
    method: Method
    images: TrainingImages
    protocol: Protocol
    task: Task
    num_classes: int
    seed: int
    folder: Path
    identity: str
    validate: Callable[[], dict[str, float]]
    metric: str
    device: torch.device
    code: str = ""
    machine: str = ""
    data: str = ""
    embeddings: EmbeddingCache | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    report: Callable[[dict[str, Any]], None] = lambda progress: None

    def __post_init__(self) -> None:
        protocol, method, count = self.protocol, self.method, len(self.images)
        if count < 2 and (method.architecture_holdout() or method.architecture_masks_shuffled()):
            raise UsageError("alpha_data=holdout and alpha_data=shuffled need at least two training images, not one")
        kept, held_out = hold_out(count, method.architecture_holdout(), seed=self.seed)
        self._plan = UpdatePlan(
            indices=kept,
            held_out=held_out,
            shuffle_masks=method.architecture_masks_shuffled(),
            batch_size=protocol.batch_size,
            accumulate=protocol.accumulate,
            epoch_images=protocol.epoch_images,
            flip=protocol.flip,
            seed=self.seed,
        )
        cacheable = protocol.cache_embeddings and not protocol.augment and encoder_is_frozen(method, self.segmenter)
        self._feeder = self._feed(self.embeddings if cacheable else None)
        self._step = TrainingStep.of(method, protocol, task=self.task, num_classes=self.num_classes, device=self.device)
        self._total = planned_steps(method, self._plan, protocol, images=count)
        self._checkpoint = CheckpointFile(self.folder, identity=self.identity, data=self.data)
        self._position = Position()
        self._best: dict[str, Tensor] = {}  # the trained tensors of the best epoch so far, on the CPU
        self._prepared, self._cold = 0, WARMUP_STEPS
        self._started = self._saved_at = self._mark = 0.0
        self._pending: _Pass | None = None
        self._loss_read = math.nan

    def _feed(self, embeddings: EmbeddingCache | None) -> Feeder:
        plan, protocol, device = self._plan, self.protocol, self.device
        return Feeder(self.segmenter, self.images, plan=plan, protocol=protocol, device=device, embeddings=embeddings)

    def run(self) -> Position:
        """Train as the protocol says, continuing from a checkpoint in the folder where there is one. The trained tensors are then in the
        folder's `BEST` and `LAST`.

        Raises:
            Diverged: loss or gradients are not finite.
            Interrupted: a stop was requested; the same call continues.
        """
        self._resume()
        for known, current in ((self._position.codes, self.code), (self._position.machines, self.machine)):
            if known[-1:] != [current]:
                known.append(current)
        self._saved_at = self._started = time.monotonic()
        if not self._total:  # nothing trains: the first state is tested
            self._keep_best()
        with self._feeder:
            while not self._over():
                self._train_epoch()
                self._finish_epoch()
                if not self._over():
                    self._stop_if_requested()
        position = self._position
        write_state(self.folder / LAST, self.method.state(), identity=self.identity, epoch=position.epoch)
        write_state(self.folder / BEST, self._best, identity=self.identity, epoch=position.best_epoch)
        return position

    def _train_epoch(self) -> None:
        position = self._position
        self.segmenter.train()
        reset_peak(self.device)
        while position.step < self._steps_in(position.epoch):
            if self._pending is None:
                self._mark = time.monotonic()
            self._prepare_ahead()
            for roles in self._step.passes(epoch=position.epoch, step=position.step):
                batches, waited = self._feeder.take()
                made = self._update(roles, batches, waited)
                self._settle()  # the pass before this one
                self._pending = made
                if self.device.type == "cpu" or self._step.scaler.is_enabled():  # fp16's scaler waits each time
                    self._settle()
            self.method.after_update(epoch=position.epoch, step=position.step, total=self._total)
            self._step.clear(self._step.optimisers)
            position.step += 1
            self._cold = max(0, self._cold - 1)
            self._report("step", loss=self._loss_read)
            self._stop_if_requested()
            if time.monotonic() - self._saved_at >= 60 * self.protocol.checkpoint_minutes:
                self._save()
        self._settle()

    def _settle(self) -> None:
        """Read the numbers of the pending pass and count it. Raises Diverged: they are not finite."""
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        self._loss_read, norm = done.numbers().tolist()
        half, position = self._step.scaler.is_enabled(), self._position
        # fp16 gradients may overflow: the scaler skips that step and lowers its scale.
        if not math.isfinite(self._loss_read) or not (half or math.isfinite(norm)):
            what = "gradient" if math.isfinite(self._loss_read) else "loss"
            rate = ", ".join(f"{value:g}" for value in done.rates)
            raise Diverged(f"the {what} is not finite in {done.where} at lr {rate}; try a lower lr, or precision=fp32")
        made = not half or math.isfinite(norm)
        if not made and self._step.scaler.get_scale() < 1:
            raise Diverged(
                f"the gradient is not finite at any fp16 loss scale, up to {done.where}; try precision=bf16 or fp32"
            )
        if made and ARCHITECTURE in done.roles:
            position.alpha_lr_sum += done.rates[done.roles.index(ARCHITECTURE)]
        now = time.monotonic()
        position.peak = max(position.peak, peak_bytes(self.device))
        position.count_pass(
            "+".join(done.roles),
            loss=self._loss_read,
            seconds=now - self._mark,
            waited=done.waited,
            timed=done.timed,
            made=made,
        )
        self._mark = now

    def _over(self) -> bool:
        """Whether training is over. A run that stopped after its last update still has to validate that epoch."""
        done = self._number() >= self._total and not self._position.step
        return done or self._position.out_of_patience(self.protocol.patience)

    def _stop_if_requested(self) -> None:
        if self.stop.requested:
            self._save()
            raise Interrupted(
                f"stopped in epoch {self._position.epoch + 1} after step {self._position.step}; repeat the command to continue"
            )

    def _steps_in(self, epoch: int) -> int:
        """Steps of an epoch; the last one may end early."""
        return min(self._plan.updates_per_epoch, self._total - epoch * self._plan.updates_per_epoch)

    @property
    def _epochs(self) -> int:
        return -(-self._total // self._plan.updates_per_epoch)

    def _prepare_ahead(self) -> None:
        """Load the images of this update and of the next ones in the background, across the end of an epoch too."""
        number = self._number()
        last = min(number + LOOKAHEAD, self._total - 1)
        for ahead in range(max(number, self._prepared), last + 1):
            epoch, step = divmod(ahead, self._plan.updates_per_epoch)
            passes = self._step.passes(epoch=epoch, step=step)
            for roles in passes:
                alone = roles == (ARCHITECTURE,)
                for_architecture = alone and bool(len(passes) > 1 or self._plan.held_out)
                self._feeder.prepare(
                    epoch, step, for_architecture=for_architecture, other_masks=alone and self._plan.shuffle_masks
                )
        self._prepared = last + 1

    def _number(self) -> int:
        """Index of the next update in the whole run."""
        return self._position.epoch * self._plan.updates_per_epoch + self._position.step

    def _update(self, roles: tuple[Role, ...], batches: list[Any], waited: float) -> _Pass:
        """One optimiser step of the given roles, which waited ``waited`` seconds for its images."""
        position, rules = self._position, self.protocol
        self._seed_noise(roles)
        factor = learning_rate_factor(self._number(), total=self._total, kind=rules.schedule, warmup=rules.warmup)
        rates = [set_learning_rate(self._step.optimisers[role], factor) for role in roles]
        if roles != (ARCHITECTURE,):
            position.lr = rates[0]
        loss = self._step.gradients(roles, batches, predict=self._feeder.predict)
        # The host does not wait for a GPU here: if its loss is not finite, this update is the run's last and is saved nowhere.
        goes_on = self.device.type != "cpu" or math.isfinite(float(loss))
        norm = self._step.update(roles) if goes_on else loss  # a loss that is not finite ends the run
        return _Pass(
            numbers=to_host(torch.stack([loss.double(), norm.to(loss.device).double()])),
            roles=roles,
            rates=rates,
            where=f"epoch {position.epoch + 1}, step {position.step + 1}",
            waited=waited,
            timed=not self._cold,
        )

    def _seed_noise(self, roles: tuple[Role, ...]) -> None:
        """Seed this step's noise by its position: the method's own, and torch's, which plug-ins may use."""
        key: tuple[int | str, ...] = (self._plan.seed, self._position.epoch, self._position.step, 0)  # the first stream
        passes = self._step.passes(epoch=self._position.epoch, step=self._position.step)
        if len(passes) > 1 and roles == (ARCHITECTURE,):
            key = (*key, ARCHITECTURE)
        self.method.generator.manual_seed(draw_number("method", *key))
        number = draw_number("torch", *key)
        torch.default_generator.manual_seed(number)
        # Without a GPU in use, torch.manual_seed would store a traceback each step, to seed GPUs later.
        if self.device.type != "cpu":
            torch.manual_seed(number)

    def _finish_epoch(self) -> None:
        position = self._position
        epoch = position.epoch + 1
        metrics: dict[str, float] = {}
        if self._selects(epoch):
            self.segmenter.eval()
            try:
                with torch.no_grad():
                    metrics = self.validate()
            except Interrupted:
                self._save()  # the epoch is trained but not yet validated
                raise
            value = metrics[self.metric]
            if self.protocol.select == "last" or improves(self.metric, value, position.best_value):
                position.best_epoch, position.best_value = epoch, value
                self._keep_best()
        self._report("epoch", loss=position.mean_loss(), metrics=metrics)
        self._position = position.after_epoch(metrics, architecture=self.method.architecture())
        self._save()

    def _keep_best(self) -> None:
        self._best = copied(self.method.state())

    def _selects(self, epoch: int) -> bool:
        """Whether validation follows this epoch (1-based): every ``select_every`` epochs of the protocol.

        A method that needs more epochs for as many updates of its weights is validated as often, so that none chooses among more epochs.
        """
        planned, every = self.protocol.epochs, self.protocol.select_every * self._epochs
        return epoch * planned // every > (epoch - 1) * planned // every or epoch == self._epochs

    def _save(self) -> None:
        self._settle()
        now = time.monotonic()
        self._position.wall_seconds += now - self._started
        self._started = self._saved_at = now
        self._position.threads = torch.get_num_threads()
        self._checkpoint.save(
            {
                "position": asdict(self._position),
                "state": self.method.state(),
                "best": self._best,
                "optimisers": {role: optimiser.state_dict() for role, optimiser in self._step.optimisers.items()},
                "scaler": self._step.scaler.state_dict(),
            }
        )
        self._report("checkpoint")

    def _resume(self) -> None:
        content, problem = self._checkpoint.load()
        if problem:
            self._report("note", text=problem)
        if content is None:
            return
        self._best = content["best"]
        self._position = Position(**content["position"])
        self.method.load_state({name: tensor.to(self.device) for name, tensor in content["state"].items()})
        for role, optimiser in self._step.optimisers.items():
            optimiser.load_state_dict(content["optimisers"][role])
        self._step.scaler.load_state_dict(content["scaler"])
        self._report("note", text=f"continues in epoch {self._position.epoch + 1} after step {self._position.step}")
        self._position.codes = self._position.codes or ["unknown"]
        if self.device.type == "cpu" and self._position.threads not in (0, torch.get_num_threads()):
            torch.set_num_threads(self._position.threads)
            self._report(
                "note", text=f"uses {self._position.threads} threads as the checkpoint did, so sums round alike"
            )

    def _report(
        self,
        kind: Literal["step", "epoch", "checkpoint", "note"],
        *,
        loss: float = math.nan,
        metrics: dict[str, float] | None = None,
        text: str = "",
    ) -> None:
        epoch = min(self._position.epoch, self._epochs - 1)
        progress: dict[str, Any] = {
            "kind": kind,
            "epoch": epoch + 1,
            "epochs": self._epochs,
            "step": self._position.step,
            "steps": max(1, self._steps_in(epoch)),
            "loss": loss,
            "rate": self._position.lr,
            "seconds": self._position.epoch_seconds,
        }
        self.report(progress | {name: value for name, value in (("metrics", metrics), ("text", text)) if value})
