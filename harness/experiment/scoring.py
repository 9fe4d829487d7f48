"""Scores of a run's models on its images: what goes into the network, and how its output is scored."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.archive.masks import KeptMask, chosen_images, encoded_masks, extremes
from harness.archive.schema import Run
from harness.datasets.base import IGNORE
from harness.evaluation.conventions import OF_TASK, higher_is_better
from harness.evaluation.evaluate import Item, Stopped, evaluate_split
from harness.evaluation.scorer import LabelScorer, SplitScorer
from harness.experiment.building import RunData, first_images
from harness.experiment.environment import Stopwatch, device_name
from harness.experiment.number_code import number_code
from harness.methods.base import Method
from harness.models.device import to_device
from harness.models.segmenter import SegmenterOutput, probabilities
from harness.planning.data import selects_by
from harness.protocols.protocol import Protocol
from harness.training.cache import EmbeddingCache, KnownEmbedding, Store, encoder_is_frozen, weights_fingerprint
from harness.training.feeding import normalise, predicted
from harness.training.images import ImageSource
from harness.training.outcome import Blank, Interrupted
from harness.training.prompts import Coordinates, prompts_of, together

EVALUATION_BATCH = 4

Report = Callable[[dict[str, Any]], None]
"""Called with ``stage`` (``opening data``, ``building the model``, ``training``, ``validation``, ``test``, ``merging``); in training with
``kind`` (``step``, ``epoch``, ``note``), ``epoch``, ``epochs``, ``step``, ``steps``, ``loss``; in tests with ``model``, ``split``,
``images``, in a merge with ``mode``; a note of any stage has ``text``."""

Summary = dict[str, dict[str, float]]
"""split -> metric -> score."""
ScoresByImage = dict[str, dict[str, dict[str, float]]]
"""split -> stem -> metric -> score."""
Seen = Callable[[str, str, NDArray], None]
"""Called with a split, an image's stem and its prediction as `evaluate_split` scores it."""


def class_scores(output: SegmenterOutput, *, side: int, num_classes: int) -> Tensor:
    """Probabilities (B, S, S), or scores (B, C, S, S) of all ``num_classes``: 0 for classes that the model was not trained with."""
    scores = probabilities(output, (side, side))
    missing = num_classes - scores.shape[1] if scores.ndim == 4 else 0
    return nn.functional.pad(scores, (0, 0, 0, 0, 0, missing)) if missing > 0 else scores


class Scoring:
    """Scores under the rules of a run.

    Args:
        device: device of the models.
        stages: the stopwatch of the run.
        report: called with the stage and the split.
        run: its seed chooses points of prompts. On generated images a model that predicts background alone does not fail.
        cache: where the embeddings of a frozen encoder are stored; None encodes each time.
        stop: called before each batch.
    """

    def __init__(
        self,
        data: RunData,
        rules: Protocol,
        *,
        device: torch.device,
        stages: Stopwatch,
        report: Report,
        run: Run,
        cache: Store | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._data, self._rules, self._device, self._stages, self._report = data, rules, device, stages, report
        self._run, self._cache, self._stop = run, cache, stop
        self._embeddings: EmbeddingCache | None = None
        self.unprompted: set[tuple[str, str]] = set()
        self.ignored: dict[str, int] = {}
        self.foreground: dict[str, float] = {}
        """As `harness.archive.schema.Record.foreground`."""

    @cached_property
    def num_classes(self) -> int:
        """Classes of the model. Quirk 7: released code counts the classes in the training masks."""
        benchmark, train = self._data.benchmark, self._data.train
        if benchmark.task == "multiclass" and self._rules.quirks.class_count == "released":
            masks = (train.mask_input(index) for index in range(len(train)))
            return 1 + max(int(mask[mask != IGNORE].max(initial=0)) for mask in masks)
        return benchmark.num_classes

    @property
    def labels(self) -> bool:
        """Whether images have one label each, instead of masks."""
        return self._data.benchmark.task == "classification"

    def remember_frozen(self, segmenter: nn.Module, method: Method) -> EmbeddingCache | None:
        """Encode each image once from now on, where the method leaves the encoder frozen. Returns the embeddings' cache for training, None
        without one."""
        if self._cache is not None and self._rules.cache_embeddings and encoder_is_frozen(method, segmenter):
            encoder = weights_fingerprint(segmenter.get_submodule("encoder"))
            code = number_code(type(method), type(method.config), type(self._data.benchmark))["numbers"]
            where = f"{device_name(self._device)} {torch.__version__} {code}"  # another device, torch or code gives other numbers
            key = f"{encoder} {self._rules.precision} {self._rules.pixels} {self._rules.fused_attention} {where}"
            self._embeddings = EmbeddingCache(encoder=key, store=self._cache)
        return self._embeddings

    def scores(
        self,
        segmenter: nn.Module,
        sets: Mapping[str, ImageSource],
        *,
        metrics: Sequence[str],
        model: str = "",
        must_find: bool = False,
        seen: Seen | None = None,
    ) -> tuple[Summary, ScoresByImage]:
        """Summary and per-image scores by split; ``all`` is every split together: always in validation, in tests where there are
        several.

        Args:
            model: the tested one, whose images' time is that of testing and whose foreground the record keeps; empty in validation, which
                quirk 8 does on test images as well.
            must_find: raise `Blank` where every prediction is background alone.
            seen: gets every prediction.

        Raises:
            Interrupted: a stop was requested; nothing that was scored here counts.
        """
        segmenter.eval()
        scorers: dict[str, SplitScorer] = {}
        together = self._scorer(metrics)
        for name, source in sets.items():
            stage = "test" if model else "validation"
            self._report({"stage": stage, "model": model, "split": name, "images": len(source)})
            with self._stages.during("testing" if model else "validating"):
                scorers[name] = self._scored(segmenter, source, name, metrics=metrics, seen=seen)
            if model:
                share, ignored = scorers[name].foreground(), scorers[name].ignored()
                if share is not None:
                    self.foreground.setdefault(name, share)  # the best checkpoint is tested first
                if ignored:
                    self.ignored[name] = len(ignored)
            together.merge(scorers[name])
        # Scores on generated images do not rank methods anyway.
        if must_find and not self._run.is_generated and together.is_blank():
            rules = self._rules
            alone = self._data.benchmark.task == "multiclass" and rules.mask_tokens == 1 and rules.decoder == "sam"
            raise Blank(
                f"the epoch that validation chose predicts no object in any of {len(together)} test images; "
                + ("take more mask tokens (--set mask_tokens=10), " if alone else "")
                + "train longer (--set epochs=N), or take another rate (--tune lr=1e-4,1e-3)"
            )
        if len(scorers) > 1 or not model:
            scorers["all"] = together
        summaries = {name: scorer.summary() for name, scorer in scorers.items()}
        return summaries, {name: scorer.images() for name, scorer in scorers.items() if name != "all"}

    def _scored(
        self, segmenter: nn.Module, source: ImageSource, name: str, *, metrics: Sequence[str], seen: Seen | None
    ) -> SplitScorer:
        """The scores of a split."""
        scorer, items = self._scorer(metrics), _Items(self, source, name)
        try:
            predict, saw = self.predictor(segmenter), None if seen is None else partial(seen, name)
            evaluate_split(predict, items, scorer, batch_size=EVALUATION_BATCH, seen=saw, stop=self._stop)
        except Stopped as stopped:
            raise Interrupted(f"stopped while {name} was scored; repeat the command to score it") from stopped
        if self._embeddings is not None:
            self._embeddings.flush()
        return scorer

    def test(
        self, segmenter: nn.Module, *, model: str, must_find: bool = False, seen: Seen | None = None
    ) -> tuple[Summary, ScoresByImage]:
        """`scores` of the run's test images by all metrics of its task."""
        metrics = OF_TASK[self._data.benchmark.task]
        tests = self._data.tests
        return self.scores(segmenter, tests, metrics=metrics, model=model, must_find=must_find, seen=seen)

    @property
    def exceptions(self) -> dict[str, int]:
        """How many test images had no object for a prompt, by their name in records."""
        if self._rules.prompt == "none":
            return {}
        return {"unprompted": sum(split in self._data.tests for split, _ in self.unprompted)}

    def predictor(self, segmenter: Any) -> Callable[..., Tensor]:
        """A function from inputs (B, 3, S, S) uint8, and the further values of `inputs_of` for each, to scores.

        These are probabilities (B, S, S), class scores (B, C, S, S), or label probabilities (B, C, 1, 1).
        """
        side = 1 if self.labels else self._rules.image_size

        def predict(
            images: Tensor, prompts: Sequence[Coordinates | None] = (), known: Sequence[KnownEmbedding] = ()
        ) -> Tensor:
            assert not segmenter.training, "a model is scored in evaluation mode"
            placed = [each for each in prompts if each is not None]
            output = predicted(
                segmenter,
                self._rules,
                images,
                device=self._device,
                known=known,
                prompts=together(placed, device=self._device) if placed else None,
                cache=self._embeddings,
            )
            return class_scores(output, side=side, num_classes=self._data.benchmark.num_classes)

        return predict

    def batches(self, source: ImageSource, count: int) -> Iterator[Tensor]:
        """The first ``count`` inputs of a split, normalised, on the device."""
        for batch in first_images(source, count).split(EVALUATION_BATCH):
            yield normalise(to_device(batch, self._device), self._rules.pixels)

    def _scorer(self, metrics: Sequence[str]) -> SplitScorer:
        benchmark = self._data.benchmark
        scorer = LabelScorer if self.labels else SplitScorer
        return scorer(
            metrics, task=benchmark.task, num_classes=benchmark.num_classes, conventions=self._rules.evaluation
        )

    def inputs_of(
        self, source: ImageSource, index: int, split: str
    ) -> tuple[Tensor, Coordinates | None, KnownEmbedding | None]:
        """What `predictor` takes for one image of a split: (3, S, S) uint8, its prompts where the rules have any, and what the cache of
        embeddings holds for it. Images are read in threads, and the cache with them."""
        image = torch.from_numpy(source.image(index))
        known = None if self._embeddings is None else self._embeddings.look_up(image)
        if self._rules.prompt == "none":
            return image, None, known
        mask, stem = source.mask_input(index), source.stem(index)
        moved = self._rules.prompt_noise if split in self._data.tests else 0.0
        return image, prompts_of(mask, self._rules, self._run.seed, stem, moved=moved), known


@dataclass(frozen=True)
class _Items(Sequence[Item]):
    """Images of a split as `evaluate_split` takes them, each read when it is used."""

    scoring: Scoring
    source: ImageSource
    split: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> Any:
        stem = self.source.stem(index)
        image, prompts, known = self.scoring.inputs_of(self.source, index, self.split)
        if prompts is not None and len(prompts) == 0:
            self.scoring.unprompted.add((self.split, stem))
        return stem, image, self.source.mask_native(index), prompts, known


class KeptMasks:
    """Sees every prediction of a test (`Seen`) and encodes those that the protocol keeps."""

    def __init__(self, data: RunData, rules: Protocol, *, run: Run) -> None:
        self._data, self._rules, self._run = data, rules, run
        self._wanted = 0 if data.benchmark.task == "classification" else rules.keep_masks
        self._seen: dict[tuple[str, str], tuple[bytes, tuple[int, ...]]] = {}

    def __call__(self, split: str, stem: str, predicted: NDArray) -> None:
        if not self._wanted:
            return
        if self._data.benchmark.task == "binary":  # (S, S) probabilities
            predicted = predicted > self._rules.evaluation.threshold
        elif predicted.ndim == 3:  # (C, S, S) class scores, else labels
            predicted = predicted.argmax(axis=0)
        # compressed, since any image may turn out to be the worst one
        self._seen[split, stem] = zlib.compress(predicted.astype(np.uint8).tobytes(), 1), predicted.shape

    def encoded(self, scores: ScoresByImage) -> bytes:
        """`harness.archive.masks.encoded_masks` of images chosen by their names, and of the best, the median and the worst one.

        Args:
            scores: scores by image of the model whose predictions were seen.
        """
        if not self._wanted:
            return b""
        positions = {
            (split, source.stem(at)): (source, at)
            for split, source in self._data.tests.items()
            for at in range(len(source))
        }
        metric = selects_by(self._run)
        finite = {
            (split, stem): values[metric]
            for split, stems in scores.items()
            for stem, values in stems.items()
            if math.isfinite(values.get(metric, math.nan))
        }
        chosen = chosen_images(positions, self._wanted)
        chosen += extremes(finite, sign=1 if higher_is_better(metric) else -1).values()
        masks = []
        for split, stem in dict.fromkeys(chosen):
            (content, shape), (source, at) = self._seen[split, stem], positions[split, stem]
            predicted = np.frombuffer(zlib.decompress(content), np.uint8).reshape(shape)
            masks.append(KeptMask(split=split, stem=stem, predicted=predicted, truth=source.mask_input(at)))
        return encoded_masks(masks)
