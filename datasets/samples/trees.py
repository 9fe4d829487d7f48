"""The layouts in which samples are written: which folder, which parts, which file names, which mask encodings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from harness.datasets.samples import encodings
from harness.datasets.samples.scenes import Array, Palette, wheel

Encode = Callable[[Path, Array], None]
Stem = Callable[[int, int], str]
"""(index, how many images in all) -> stem"""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One layout of one benchmark.

    Args:
        folder: folder of the benchmark below the data root.
        parts: part (``all``, ``train``, ``val``, ``test``, ``easy``, ``hard``; ``val+easy`` for a folder of several) ->
            (image folder, mask folder).
        image_suffix: extension of images.
        mask_names: endings of mask names, one after the other: real archives are not consistent.
        encode: mask encodings, one after the other.
        lists: write AutoGluon's CSVs: part -> file name.
        save_image: writes images where Pillow's own way is not the archive's.
    """

    folder: str
    parts: Mapping[str, tuple[str, str]]
    image_suffix: str
    mask_names: tuple[str, ...]
    encode: tuple[Encode, ...]
    lists: Mapping[str, str] = field(default_factory=dict)
    save_image: Encode | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a benchmark's samples look.

    Args:
        palette: colours of its scenes.
        stem: file stems in the benchmark's own style.
        trees: layout name -> tree.
        square: all images square and of one size.
    """

    palette: Palette
    stem: Stem
    trees: Mapping[str, Tree]
    square: bool = False


def _three(images: str, masks: str) -> dict[str, tuple[str, str]]:
    return {part: (images.format(part), masks.format(part)) for part in ("train", "val", "test")}


def _autogluon(name: str, *, suffix: str, mask_name: str, encode: tuple[Encode, ...], test: str = "test.csv") -> Tree:
    return Tree(
        folder=f"{name}/{name}",
        parts=_three("{}_images", "{}_masks"),
        image_suffix=suffix,
        mask_names=(mask_name,),
        encode=encode,
        lists={"train": "train.csv", "val": "val.csv", "test": test},
    )


def _isic(split: str) -> tuple[str, str]:
    return f"ISIC-2017_{split}_Data", f"ISIC-2017_{split}_Part1_GroundTruth"


def kvasir_stem(index: int, count: int) -> str:
    return "cju" + sha256(f"kvasir {index}".encode()).hexdigest()[:22]


def cvc_stem(index: int, count: int) -> str:
    """Frame numbers spread over the 29 sequences."""
    return str(1 + round(index * 611 / max(1, count - 1)))


_POLYP = Palette(background=(178, 92, 78), foreground=((228, 158, 70),))
_MIXED_GREY = (encodings.grey, encodings.grey, encodings.three_channels, encodings.one_bit)
_PRANET_TRAIN = {"train": ("TrainDataset/image", "TrainDataset/masks")}

RECIPES: Mapping[str, Recipe] = {
    "kvasir": Recipe(
        palette=_POLYP,
        stem=kvasir_stem,
        trees={
            "original": Tree(
                folder="Kvasir-SEG",
                parts={"all": ("images", "masks")},
                image_suffix=".jpg",
                mask_names=(".jpg",),
                encode=(encodings.jpeg_noise,),
            ),
            "pranet": Tree(
                folder="PraNet",
                parts={**_PRANET_TRAIN, "test": ("TestDataset/Kvasir/images", "TestDataset/Kvasir/masks")},
                image_suffix=".png",
                mask_names=(".png",),
                encode=_MIXED_GREY,
            ),
            "autogluon": _autogluon(
                "polyp", suffix=".png", mask_name=".png", encode=_MIXED_GREY, test="test_Kvasir.csv"
            ),
        },
    ),
    "cvc612": Recipe(
        palette=_POLYP,
        stem=cvc_stem,
        trees={
            "original": Tree(
                folder="CVC-ClinicDB",
                parts={"all": ("Original", "Ground Truth")},
                image_suffix=".tif",
                mask_names=(".tif",),
                encode=(encodings.grey, encodings.three_channels),
                save_image=encodings.mislabelled_tiff,
            ),
            "kaggle": Tree(
                folder="CVC-ClinicDB",
                parts={"all": ("PNG/Original", "PNG/Ground Truth")},
                image_suffix=".png",
                mask_names=(".png",),
                encode=(encodings.grey,),
            ),
            "pranet": Tree(
                folder="PraNet",
                parts={**_PRANET_TRAIN, "test": ("TestDataset/CVC-ClinicDB/images", "TestDataset/CVC-ClinicDB/masks")},
                image_suffix=".png",
                mask_names=(".png",),
                encode=_MIXED_GREY,
            ),
            "autogluon": _autogluon(
                "polyp", suffix=".png", mask_name=".png", encode=_MIXED_GREY, test="test_CVC-ClinicDB.csv"
            ),
        },
    ),
    "isic2017": Recipe(
        palette=Palette(background=(214, 170, 150), foreground=((96, 58, 48),)),
        stem=lambda index, count: f"ISIC_{index:07d}",
        trees={
            "original": Tree(
                folder="ISIC2017",
                parts={"train": _isic("Training"), "val": _isic("Validation"), "test": _isic("Test_v2")},
                image_suffix=".jpg",
                mask_names=("_segmentation.png", "_segmentation.png", "_Segmentation.PNG"),
                encode=(encodings.grey,),
            ),
            "autogluon": _autogluon("isic2017", suffix=".jpg", mask_name="_segmentation.png", encode=(encodings.grey,)),
        },
    ),
    "camo": Recipe(
        palette=Palette(background=(92, 112, 70), foreground=((140, 120, 82),)),
        stem=lambda index, count: f"camourflage_{index:05d}",
        trees={
            "original": Tree(
                folder="CAMO-V.1.0-CVIU2019",
                parts={"train": ("Images/Train", "GT"), "test": ("Images/Test", "GT")},
                image_suffix=".jpg",
                mask_names=(".png",),
                encode=(encodings.grey, encodings.grey_low_peak),
            ),
            "sinet": Tree(
                folder="SINet",
                parts={
                    "train": ("TrainDataset/Imgs", "TrainDataset/GT"),
                    "test": ("TestDataset/CAMO/Imgs", "TestDataset/CAMO/GT"),
                },
                image_suffix=".jpg",
                mask_names=(".png",),
                encode=(encodings.grey,),
            ),
            "autogluon": _autogluon(
                "camo_sem_seg", suffix=".jpg", mask_name=".png", encode=(encodings.grey,), test="test_CAMO.csv"
            ),
        },
    ),
    "sbu": Recipe(
        palette=Palette(background=(182, 178, 168), foreground=((72, 72, 84),)),
        stem=lambda index, count: f"lssd{index:04d}",
        trees={
            "original": Tree(
                folder="SBU-shadow",
                parts={
                    "train": ("SBUTrain4KRecoveredSmall/ShadowImages", "SBUTrain4KRecoveredSmall/ShadowMasks"),
                    "test": ("SBU-Test/ShadowImages", "SBU-Test/ShadowMasks"),
                },
                image_suffix=".jpg",
                mask_names=(".png",),
                encode=(encodings.grey,),
            ),
            "autogluon": _autogluon("SBU-shadow", suffix=".jpg", mask_name=".png", encode=(encodings.grey,)),
        },
    ),
    "leaf": Recipe(
        palette=Palette(background=(70, 132, 58), foreground=((150, 104, 52),)),
        stem=lambda index, count: f"{index:05d}",
        trees={
            "original": Tree(
                folder="leaf_disease",
                parts={"all": ("data/data/images", "data/data/masks")},
                image_suffix=".jpg",
                mask_names=(".png",),
                encode=(encodings.palette_png,),
            ),
            "flat": Tree(
                folder="leaf_disease",
                parts={"all": ("images", "masks")},
                image_suffix=".jpg",
                mask_names=(".png",),
                encode=(encodings.palette_png,),
            ),
            "autogluon": _autogluon(
                "leaf_disease_segmentation", suffix=".jpg", mask_name=".png", encode=(encodings.palette_png,)
            ),
        },
    ),
    "road": Recipe(
        palette=Palette(background=(96, 112, 84), foreground=((190, 188, 182),), outlines="lines"),
        stem=lambda index, count: f"{10078660 + 15 * index}_15",
        square=True,
        trees={
            "original": Tree(
                folder="massachusetts_roads",
                parts={
                    part: (f"{folder}/sat", f"{folder}/map")
                    for part, folder in (("train", "train"), ("val", "valid"), ("test", "test"))
                },
                image_suffix=".tiff",
                mask_names=(".tif",),
                encode=(encodings.grey, encodings.three_channels),
            ),
            "kaggle": Tree(
                folder="massachusetts-roads-dataset",
                parts=_three("tiff/{}", "tiff/{}_labels"),
                image_suffix=".tiff",
                mask_names=(".tif",),
                encode=(encodings.grey,),
            ),
            "autogluon": _autogluon("road_segmentation", suffix=".tiff", mask_name=".tif", encode=(encodings.grey,)),
        },
    ),
    "trans10k_v1": Recipe(
        palette=Palette(background=(120, 110, 100), foreground=((90, 160, 200), (190, 210, 120))),
        stem=lambda index, count: str(index + 1),
        trees={
            "original": Tree(
                folder="Trans10K",
                parts={
                    "train": ("train/images", "train/masks"),
                    **{
                        f"val+{level}": (f"validation/{level}/images", f"validation/{level}/masks")
                        for level in ("easy", "hard")
                    },
                    **{level: (f"test/{level}/images", f"test/{level}/masks") for level in ("easy", "hard")},
                },
                image_suffix=".jpg",
                mask_names=("_mask.png",),
                encode=(encodings.channel_means,),
            ),
        },
    ),
    "trans10k_v2": Recipe(
        palette=Palette(background=(110, 110, 110), foreground=wheel(11)),
        stem=lambda index, count: str(index + 1),
        trees={
            "original": Tree(
                folder="Trans10K-v2",
                parts={
                    part: (f"{folder}/images", f"{folder}/masks_12")
                    for part, folder in (("train", "train"), ("val", "validation"), ("test", "test"))
                },
                image_suffix=".jpg",
                mask_names=("_mask.png",),
                encode=(encodings.index,),
            ),
        },
    ),
}
