"""``python -m harness.export``: write the model of a finished run as a SAM checkpoint or as its trained tensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli import verb
from harness.errors import UsageError
from harness.registry import load_plugin


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m harness.export",
        description="Write the best model of a finished run: a plain SAM checkpoint with the method merged into it, "
        "or the trained tensors alone.",
    )
    p.add_argument("--run", required=True, metavar="KEY", help="key of the run, or the beginning of it")
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help=".pth, or .safetensors with --adapter-only")
    p.add_argument(
        "--merge",
        choices=("exact", "conv", "calibrated"),
        default="exact",
        help="fold what is linear (default), or fit and fold the rest by least squares on training images; "
        "conv keeps a convolution, so no SAM checkpoint comes of it",
    )
    p.add_argument("--adapter-only", action="store_true", help="write the trained tensors as safetensors, unmerged")
    p.add_argument("--verify", action="store_true", help="reload the file in a fresh process and compare predictions")
    p.add_argument("--results", type=Path, default=Path("runs"), metavar="DIR", help="results folder (default: runs)")
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="the pretrained weights that the run started from")
    p.add_argument("--data", type=Path, metavar="DIR", help="the benchmark's folder or its parent; calibrated needs it")
    p.add_argument("--force", action="store_true", help="overwrite FILE")
    p.add_argument("--plugin", action="append", default=[], type=Path, metavar="FILE.py", help="as the run had it")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    suffix = ".safetensors" if arguments.adapter_only else ".pth"
    if arguments.out.suffix != suffix:
        raise UsageError(f"--out {arguments.out}: the name must end in {suffix}")
    if arguments.out.exists() and not arguments.force:
        raise UsageError(f"--out {arguments.out} exists; choose another name, or --force to overwrite it")

    for path in arguments.plugin:
        load_plugin(path)

    from harness.experiment.exporting import Export, export
    from harness.experiment.reloading import verify

    request = Export(
        results=arguments.results,
        run=arguments.run,
        out=arguments.out,
        merge=arguments.merge,
        adapter_only=arguments.adapter_only,
        checkpoint=arguments.checkpoint,
        data=arguments.data,
        plugins=tuple(arguments.plugin),
    )
    exported = export(request)
    print(f"{request.out}: {exported.summary()}")
    if arguments.verify:
        print(f"verified in a fresh process: relative difference of predictions {verify(exported, request):.1e}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
