"""Masks of a run's test images that are stored with its record."""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from harness.archive.masks import KeptMask, chosen_images, encoded_masks, extremes
from harness.archive.schema import Run
from harness.evaluation.conventions import higher_is_better
from harness.experiment.building import RunData
from harness.experiment.scoring import ScoresByImage
from harness.planning.data import selects_by
from harness.protocols.card import Protocol


class KeptMasks:
    """Sees every prediction of a test (`harness.experiment.scoring.Seen`) and encodes those that the protocol keeps."""

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
            scores: by image, of the model whose predictions were seen.
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
