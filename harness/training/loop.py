"""The training loop: epochs of updates, validation, selection, checkpoints, and exact resume.

Everything random is a function of (seed, epoch, step), the learning rate is one of the update's index, and checkpoints are written
between updates. So a restarted process repeats the updates since its last checkpoint with the same numbers. On a CPU it ends with
bit-identical weights and metrics, for the same number of threads. On a GPU results agree but for rounding: attention, pooling and
resizing have no fast deterministic backward pass there.

The host reads two numbers an update, loss and gradient norm; on a GPU it does so while the next update is being computed. Losses of
several classes, Conv-LoRA's router, AdaLoRA's allocation of ranks and fp16's scaler make it wait within an update as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from harness.archive.schema import update_budget
from harness.methods.base import ARCHITECTURE, WEIGHTS, Method, Role
from harness.methods.parts.placement import MethodError
from harness.models.transfer import to_host
from harness.protocols.card import Protocol
from harness.system.errors import UsageError
from harness.training.batches import UpdatePlan, draw_number, hold_out
from harness.training.cache import encoder_is_frozen
from harness.training.checkpoint import BEST, LAST, CheckpointFiles, Position, copied, write_state
from harness.training.device import peak_bytes, reset_peak
from harness.training.feeding import LOOKAHEAD, Feeder
from harness.training.optimisers import set_learning_rate
from harness.training.outcome import Assignment, Diverged, Interrupted, Progress, TrainingResult
from harness.training.step import TrainingStep

MOST_STEPS = 1000
"""Steps for one update of the weights; a method that takes more than this never updates them."""


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
            raise MethodError(f"{method.name} gives its weights no {updates} updates within {total} steps")
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
"""Updates after each start that the median step time excludes: allocators, kernels and files are still cold."""


def train(given: Assignment) -> TrainingResult:
    """Train the attached method as the protocol says, continuing from a checkpoint in ``given.folder`` where there is one.

    Raises:
        Diverged: loss or gradients are not finite.
        Interrupted: a stop was requested; call it with the same folder to continue.
        UsageError: the protocol does not fit the task.
    """
    protocol, method, images = given.protocol, given.method, given.images
    if len(images) < 2 and (method.architecture_holdout() or method.architecture_masks_shuffled()):
        raise UsageError("alpha_data=holdout and alpha_data=shuffled need two training images or more; here is one")
    kept, held_out = hold_out(len(images), method.architecture_holdout(), seed=given.seed)
    plan = UpdatePlan(
        indices=kept,
        held_out=held_out,
        shuffle_masks=method.architecture_masks_shuffled(),
        batch_size=protocol.batch_size,
        accumulate=protocol.accumulate,
        epoch_images=protocol.epoch_images,
        flip=protocol.flip,
        seed=given.seed,
    )
    cacheable = protocol.cache_embeddings and not protocol.augment and encoder_is_frozen(method, given.segmenter)
    feeder = partial(Feeder, given.segmenter, images, plan=plan, protocol=protocol, device=given.device)
    loop = _Loop(
        given=given,
        plan=plan,
        feeder=feeder(embeddings=given.embeddings if cacheable else None),
        uncached=partial(feeder, embeddings=None),
        step=TrainingStep.of(method, protocol, task=given.task, num_classes=given.num_classes, device=given.device),
        total=planned_steps(method, plan, protocol, images=len(images)),
        checkpoints=CheckpointFiles(given.folder, identity=given.identity, data=given.data),
    )
    return loop.run()


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """A pass whose numbers the host has not read yet. ``numbers`` waits for its loss and gradient norm; ``where`` is for messages."""

    numbers: Callable[[], Tensor]
    roles: tuple[Role, ...]
    rates: list[float]
    where: str
    waited: float
    timed: bool


@dataclass(kw_only=True)
class _Loop:
    """The parts of a run and its position; see `train`. ``uncached``: makes a feeder without embeddings. ``best``: the trained tensors of
    the best epoch so far, on the CPU."""

    given: Assignment
    plan: UpdatePlan
    feeder: Feeder
    uncached: Callable[[], Feeder]
    step: TrainingStep
    total: int
    checkpoints: CheckpointFiles
    position: Position = field(default_factory=Position)
    best: dict[str, Tensor] = field(default_factory=dict)
    prepared: int = 0
    cold: int = WARMUP_STEPS
    started: float = 0.0
    saved_at: float = 0.0
    pending: _Pass | None = None
    mark: float = 0.0
    loss_read: float = math.nan

    def run(self) -> TrainingResult:
        self._resume()
        for known, current in ((self.position.codes, self.given.code), (self.position.machines, self.given.machine)):
            if known[-1:] != [current]:
                known.append(current)
        self.saved_at = self.started = time.monotonic()
        if self.given.method.start_images and not self._number():
            self._start_from_data()
        if not self.total:  # nothing trains: the first state is tested
            self._keep_best()
        with self.feeder:
            while not self._over():
                self._train_epoch()
                self._finish_epoch()
                if not self._over():
                    self._stop_if_requested()
        return self._result()

    def _start_from_data(self) -> None:
        """Let the method see the run's first batches, or all of its first epoch where that has fewer images. A resumed run has the
        result in its state."""
        method, plan = self.given.method, self.plan
        wanted = -(-method.start_images // (plan.batch_size * plan.accumulate))
        steps = min(wanted, plan.updates_per_epoch)

        def passes(feeder: Feeder) -> Iterator[None]:
            for step in range(steps):
                feeder.prepare(0, step)
                for batch in feeder.take()[0]:
                    with torch.no_grad():
                        feeder.predict(batch)
                    yield

        self.given.segmenter.eval()
        with self.uncached() as feeder:
            method.start_from(passes(feeder))

    def _train_epoch(self) -> None:
        position = self.position
        self.given.segmenter.train()
        reset_peak(self.given.device)
        while position.step < self._steps_in(position.epoch):
            if self.pending is None:
                self.mark = time.monotonic()
            self._prepare_ahead()
            for roles in self.step.passes(epoch=position.epoch, step=position.step):
                batches, waited = self.feeder.take()
                made = self._update(roles, batches, waited)
                self._settle()  # the pass before this one
                self.pending = made
                if self.given.device.type == "cpu" or self.step.scaler.is_enabled():  # fp16's scaler waits each time
                    self._settle()
            self.given.method.after_update(epoch=position.epoch, step=position.step, total=self.total)
            self.step.clear(self.step.optimisers)
            position.step += 1
            self.cold = max(0, self.cold - 1)
            self._report("step", loss=self.loss_read)
            self._stop_if_requested()
            if time.monotonic() - self.saved_at >= 60 * self.given.protocol.checkpoint_minutes:
                self._save()
        self._settle()

    def _settle(self) -> None:
        """Read the numbers of the pending pass and count it. Raises Diverged: they are not finite."""
        if self.pending is None:
            return
        done, self.pending = self.pending, None
        self.loss_read, norm = done.numbers().tolist()
        half, position = self.step.scaler.is_enabled(), self.position
        # fp16 gradients may overflow: the scaler skips that step and lowers its scale.
        if not math.isfinite(self.loss_read) or not (half or math.isfinite(norm)):
            what = "gradient" if math.isfinite(self.loss_read) else "loss"
            rate = ", ".join(f"{value:g}" for value in done.rates)
            raise Diverged(f"the {what} is not finite in {done.where} at lr {rate}; try a lower lr, or precision=fp32")
        made = not half or math.isfinite(norm)
        if not made and self.step.scaler.get_scale() < 1:
            raise Diverged(
                f"the gradient is not finite at any scale of fp16, up to {done.where}; try precision=bf16 or fp32"
            )
        if made and ARCHITECTURE in done.roles:
            position.alpha_lr_sum += done.rates[done.roles.index(ARCHITECTURE)]
        now = time.monotonic()
        position.peak = max(position.peak, peak_bytes(self.given.device))
        position.count_update(
            "+".join(done.roles),
            loss=self.loss_read,
            seconds=now - self.mark,
            waited=done.waited,
            timed=done.timed,
            made=made,
        )
        self.mark = now

    def _over(self) -> bool:
        """Whether training is over. A run that stopped after its last update still has to validate that epoch."""
        done = self._number() >= self.total and not self.position.step
        return done or self.position.out_of_patience(self.given.protocol.patience)

    def _stop_if_requested(self) -> None:
        if self.given.stop.requested:
            self._save()
            raise Interrupted(
                f"stopped in epoch {self.position.epoch + 1} after step {self.position.step}; repeat the command to continue"
            )

    def _steps_in(self, epoch: int) -> int:
        """Steps of an epoch; the last one may end early."""
        return min(self.plan.updates_per_epoch, self.total - epoch * self.plan.updates_per_epoch)

    @property
    def _epochs(self) -> int:
        return -(-self.total // self.plan.updates_per_epoch)

    def _prepare_ahead(self) -> None:
        """Load the images of this update and of the next ones in the background, across the end of an epoch too."""
        number = self._number()
        last = min(number + LOOKAHEAD, self.total - 1)
        for ahead in range(max(number, self.prepared), last + 1):
            epoch, step = divmod(ahead, self.plan.updates_per_epoch)
            passes = self.step.passes(epoch=epoch, step=step)
            for roles in passes:
                alone = roles == (ARCHITECTURE,)
                for_architecture = alone and bool(len(passes) > 1 or self.plan.held_out)
                self.feeder.prepare(
                    epoch, step, for_architecture=for_architecture, other_masks=alone and self.plan.shuffle_masks
                )
        self.prepared = last + 1

    def _number(self) -> int:
        """Index of the next update in the whole run."""
        return self.position.epoch * self.plan.updates_per_epoch + self.position.step

    def _update(self, roles: tuple[Role, ...], batches: list[Any], waited: float) -> _Pass:
        """One optimiser step of the given roles, which waited ``waited`` seconds for its images."""
        position, rules = self.position, self.given.protocol
        self._seed_noise(roles)
        factor = learning_rate_factor(self._number(), total=self.total, kind=rules.schedule, warmup=rules.warmup)
        rates = [set_learning_rate(self.step.optimisers[role], factor) for role in roles]
        if roles != (ARCHITECTURE,):
            position.lr = rates[0]
        loss = norm = self.step.gradients(roles, batches, predict=self.feeder.predict)
        # The host does not wait for a GPU here: if its loss is not finite, this update is the run's last and is saved nowhere.
        if self.given.device.type != "cpu" or math.isfinite(float(loss)):
            norm = self.step.update(roles)
        return _Pass(
            numbers=to_host(torch.stack([loss.double(), norm.to(loss.device).double()])),
            roles=roles,
            rates=rates,
            where=f"epoch {position.epoch + 1}, step {position.step + 1}",
            waited=waited,
            timed=not self.cold,
        )

    def _seed_noise(self, roles: tuple[Role, ...]) -> None:
        """Seed this step's noise by its position: the method's own, and torch's, which plug-ins may use."""
        key: tuple[int | str, ...] = (self.plan.seed, self.position.epoch, self.position.step, 0)  # the first stream
        passes = self.step.passes(epoch=self.position.epoch, step=self.position.step)
        if len(passes) > 1 and roles == (ARCHITECTURE,):
            key = (*key, ARCHITECTURE)
        self.given.method.generator.manual_seed(draw_number("method", *key))
        number = draw_number("torch", *key)
        torch.default_generator.manual_seed(number)
        # Without a GPU in use, torch.manual_seed would store a traceback each step, to seed GPUs later.
        if self.given.device.type != "cpu":
            torch.manual_seed(number)

    def _finish_epoch(self) -> None:
        position = self.position
        epoch = position.epoch + 1
        metrics: dict[str, float] = {}
        if self._selects(epoch):
            try:
                metrics = self._validate()
            except Interrupted:
                self._save()  # with the epoch trained and not yet validated
                raise
            value = metrics[self.given.selection.metric]
            if self.given.protocol.select == "last" or self.given.selection.improves(value, position.best_value):
                position.best_epoch, position.best_value = epoch, value
                self._keep_best()
        self._report("epoch", loss=position.mean_loss(), metrics=metrics)
        self.position = position.after_epoch(metrics, architecture=self.given.method.architecture())
        self._save()

    def _keep_best(self) -> None:
        self.best = copied(self.given.method.state())

    def _selects(self, epoch: int) -> bool:
        """Whether validation follows this epoch (1-based): every ``select_every`` epochs of the protocol.

        A method that needs more epochs for as many updates of its weights is validated as often, so that none chooses among more.
        """
        planned, every = self.given.protocol.epochs, self.given.protocol.select_every * self._epochs
        return epoch * planned // every > (epoch - 1) * planned // every or epoch == self._epochs

    def _validate(self) -> dict[str, float]:
        self.given.segmenter.eval()
        with torch.no_grad():
            return self.given.validate()

    def _save(self) -> None:
        self._settle()
        now = time.monotonic()
        self.position.wall_seconds += now - self.started
        self.started = self.saved_at = now
        self.position.threads = torch.get_num_threads()
        self.checkpoints.save(
            {
                "position": asdict(self.position),
                "state": self.given.method.state(),
                "best": self.best,
                "optimisers": {role: optimiser.state_dict() for role, optimiser in self.step.optimisers.items()},
                "scaler": self.step.scaler.state_dict(),
            }
        )
        self._report("checkpoint")

    def _resume(self) -> None:
        content, problems = self.checkpoints.load()
        for line in problems:
            self._report("note", text=line)
        if content is None:
            return
        self.best = content["best"]
        self.position = Position(**content["position"])
        self.given.method.load_state({name: tensor.to(self.given.device) for name, tensor in content["state"].items()})
        for role, optimiser in self.step.optimisers.items():
            optimiser.load_state_dict(content["optimisers"][role])
        self.step.scaler.load_state_dict(content["scaler"])
        self._report("note", text=f"continues in epoch {self.position.epoch + 1} after step {self.position.step}")
        self.position.codes = self.position.codes or ["unknown"]
        if self.position.codes[-1] != self.given.code:
            self._report("note", text="other code wrote the checkpoint: the record will say so")
        if self.position.machines[-1:] not in ([], [self.given.machine]):
            self._report(
                "note", text=f"the checkpoint was written on {self.position.machines[-1]}: the record will say so"
            )
        if self.given.device.type == "cpu" and self.position.threads not in (0, torch.get_num_threads()):
            torch.set_num_threads(self.position.threads)
            self._report(
                "note", text=f"uses {self.position.threads} threads as the checkpoint did, so sums round alike"
            )

    def _result(self) -> TrainingResult:
        position = self.position
        operations = max(map(len, self.given.method.architecture().values()), default=0)  # that a cell mixes
        best, last = self.given.folder / BEST, self.given.folder / LAST
        write_state(last, self.given.method.state(), identity=self.given.identity, epoch=position.epoch)
        write_state(best, self.best, identity=self.given.identity, epoch=position.best_epoch)
        return TrainingResult(
            history=position.history,
            architecture=position.architecture,
            selected_epoch=position.best_epoch,
            best_state=best,
            last_state=last,
            cost=position.cost(),
            budget=update_budget(position.history, alpha_lr_sum=position.alpha_lr_sum, operations=operations),
            earlier_codes=position.codes[:-1],
            earlier_machines=position.machines[:-1],
        )

    def _report(
        self,
        kind: Literal["step", "epoch", "checkpoint", "note"],
        *,
        loss: float = math.nan,
        metrics: dict[str, float] | None = None,
        text: str = "",
    ) -> None:
        self.given.report(
            Progress(
                kind=kind,
                epoch=min(self.position.epoch + 1, self._epochs),
                epochs=self._epochs,
                step=self.position.step,
                steps=max(1, self._steps_in(min(self.position.epoch, self._epochs - 1))),
                loss=loss,
                rate=self.position.lr,
                seconds=self.position.epoch_seconds,
                metrics=metrics or {},
                text=text,
            )
        )
