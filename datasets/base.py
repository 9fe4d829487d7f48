"""The contract of a benchmark: where its files are, how its splits are made, how a mask becomes class indices."""

from __future__ import annotations

import errno
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:  # listing benchmarks does without numpy
    import numpy as np
    from numpy.typing import NDArray

IGNORE = 255


_REMOTE = getattr(errno, "EREMOTEIO", errno.EIO)  # Linux's own
AWAY = frozenset({errno.ESTALE, errno.EIO, errno.ETIMEDOUT, _REMOTE, errno.ECONNRESET, errno.EMFILE, errno.ENFILE})
"""Errors of a file server that is away for a while, or of a machine that is short of file handles: the file itself may be intact."""


class DatasetError(ValueError):
    """Files are missing or do not fit the benchmark; the message is one line that says what to do."""


class NotFound(DatasetError):
    """Nothing of the benchmark is in the folder that was given."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image with its mask; ``stem`` is unique within a benchmark. Where an image has one label instead, ``label`` is its
    class index and ``mask`` the image itself. Where one file holds the masks of many images, ``entry`` names this image in it.
    ``prefix`` is the beginning of the stem that is not in the file's name, and keeps images of several splits apart."""

    stem: str
    image: Path
    mask: Path
    label: int | None = None
    entry: str = ""
    prefix: str = ""

    def __post_init__(self) -> None:
        require_plain(self.stem, self.image)


_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, ends of lines, and bytes that are not UTF-8: tables of scores have one row per stem."""


def require_plain(name: str, path: Path) -> None:
    """Refuse (DatasetError) an image name that is not one line of printable UTF-8, which records and tables need."""
    if _NO_TEXT.search(name):
        shown = _NO_TEXT.sub(lambda match: ascii(match[0])[1:-1], str(path))
        raise DatasetError(f"{shown} has a control character or bytes that are not UTF-8 in its name; rename it")


Tested = Literal["published", "given", "carved"]
"""Which images are tested: those that others published, those that the data or a list give, or, without a test split, some carved out."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The pairs of every split, in a fixed order; ``val`` is never taken from a test split."""

    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    test: Mapping[str, tuple[Pair, ...]]  # by the name of the test split (`test`; `easy` and `hard` for Trans10K-v1)
    layout: str  # on disk, as it was recognised, such as `original` or `autogluon`
    rule: str  # how the splits were made, such as `official`; goes into the record
    note: str = ""  # what a table must say about the data ("352 px copy")
    left_out: tuple[Path, ...] = ()  # files without a partner, which the rule counts
    tested: Tested = "given"
    lists: Mapping[Path, str] = field(default_factory=dict)  # of pairs and of splits that were read -> how, in words
    generated: bool = False  # the images are generated

    def __post_init__(self) -> None:
        if taken := {"train", "val"} & self.test.keys():
            raise DatasetError(f"a test split cannot be called {min(taken)}; give it another name")

    @property
    def parts(self) -> dict[str, tuple[Pair, ...]]:
        """The pairs by the name of their split."""
        return {"train": self.train, "val": self.val, **self.test}


class Sample(NamedTuple):
    """image (H, W, 3) uint8 RGB; mask (H, W) uint8 class index, 255 = ignore; always of one size. A label is a mask (1, 1)."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of a protocol that change what a benchmark serves.

    Args:
        split_seed: seed of splits that are carved.
        split_follows_seed: whether that is the seed of the run, which the words on the splits then say.
        split_rule: ``default``, ``carved``, or a benchmark's own word (cvc612: ``pranet``; isic2017: ``val-as-test``; camo:
            ``camo+cod10k``).
        group: for own data: a regular expression; images in whose names it matches the same text stay in one split.
        category: for a COCO file of one's own: the category that is foreground, ``any`` for all of them.
        invert: for binary masks of one's own: true swaps foreground and background, false says that they are right although most
            of each mask is foreground; None where the user did not say.
        mask_255_only: quirk 11 of InfoSAM: only the value 255 counts as foreground.
    """

    split_seed: int = 0
    split_follows_seed: bool = False
    split_rule: str = "default"
    mask_255_only: bool = False
    group: str = ""
    category: str = ""
    invert: bool | None = None

    @property
    def seed_in_words(self) -> str:
        return "the run's seed" if self.split_follows_seed else f"seed {self.split_seed}"


class Benchmark(ABC):
    """One benchmark. Class attributes are data for tables and messages; methods read files.

    Args:
        options: the protocol's switches.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    task: ClassVar[Literal["binary", "multiclass", "classification"]] = "binary"
    num_classes: ClassVar[int] = 2
    class_names: ClassVar[tuple[str, ...]] = ("background", "foreground")
    metrics: ClassVar[tuple[str, ...]]
    """Names from `harness.evaluation`: s_measure, e_mean, e_max, e_adaptive, weighted_f, mae, iou, dice, jaccard,
    ber, miou, accuracy; of labels accuracy, nll, ece."""
    selection_metric: ClassVar[str]
    """The metric that chooses the checkpoint on validation (``ber``, ``mae`` and ``nll``: lower is better)."""
    terms: ClassVar[str]
    redistribution: ClassVar[str] = ""
    """The licence under which its images may be passed on; empty where they may not, or where none is stated."""
    source: ClassVar[str]
    """Where to get the data, in one sentence."""
    published_sizes: ClassVar[Mapping[str, int]] = {}
    own: ClassVar[bool] = False
    """Whether it is a user's data set, whose folder says what is in it."""

    def __init__(self, options: DataOptions | None = None) -> None:
        self.options = options or DataOptions()

    def sizes_to_expect(self, layout: str) -> Mapping[str, int]:
        """Images by split (or in ``all``) of the whole benchmark in this layout, under `options`; empty where no sizes were
        published."""
        return self.published_sizes

    @abstractmethod
    def locate(self, data_root: Path) -> Path:
        """The folder of this benchmark: ``data_root`` itself or a folder below it that has one of the known layouts.

        Raises:
            DatasetError: none is there (says which folders were tried and where to get the data), or two candidates
                are.
        """

    @abstractmethod
    def splits(self, root: Path) -> Splits:
        """Pair images and masks below ``root`` (as `locate` returned it) and split them.

        Raises:
            DatasetError: an image without a mask, an empty split, two files with one stem.
        """

    def group(self, pair: Pair) -> str:
        """The group of a pair (a video, an original image, a patient), from its stem alone. Pairs of one group stay in one split,
        and intervals count a group of test images as one."""
        return pair.stem

    @abstractmethod
    def read(self, pair: Pair) -> Sample:
        """Decode one pair.

        Raises:
            DatasetError: unreadable file, or a mask with a value that this benchmark does not have.
        """


BINARY = Benchmark.class_names
"""The classes of binary masks."""
