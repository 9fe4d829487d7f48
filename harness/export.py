"""``python -m harness.export``: write the best model of a finished run, as a SAM checkpoint with the method merged into it
or as its trained tensors."""

from __future__ import annotations

from pathlib import Path

from harness.cli import verb
from harness.command_line import CommandParser, command
from harness.errors import UsageError
from harness.registry import load_plugin
from harness.settings.options import add_plugins, add_results, plugins_of, results_of
from harness.settings.read import load_settings


def parser() -> CommandParser:
    p = command("export", __doc__)
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
    add_results(p)
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="the pretrained weights that the run started from")
    p.add_argument("--data", type=Path, metavar="DIR", help="the benchmark's folder or its parent; calibrated needs it")
    p.add_argument("--force", action="store_true", help="overwrite FILE")
    add_plugins(p, help="as the run had it")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    suffix = ".safetensors" if arguments.adapter_only else ".pth"
    if arguments.out.suffix != suffix:
        raise UsageError(f"--out {arguments.out}: the name must end in {suffix}")
    if arguments.out.exists() and not arguments.force:
        raise UsageError(f"--out {arguments.out} exists; choose another name, or --force to overwrite it")

    plugins = plugins_of(arguments)
    for path in plugins:
        load_plugin(path)

    from harness.experiment.exporting import Export, export
    from harness.experiment.reloading import verify
    from harness.experiment.trained import find_run
    from harness.planning.asked import checkpoint_of, folder_of

    results, settings = results_of(arguments), load_settings()
    run = find_run(results, arguments.run)
    calibrated = arguments.merge == "calibrated" and not arguments.adapter_only
    request = Export(
        results=results,
        run=run.key,
        out=arguments.out,
        merge=arguments.merge,
        adapter_only=arguments.adapter_only,
        checkpoint=arguments.checkpoint or checkpoint_of(run, settings),
        data=arguments.data or (folder_of(run, settings) if calibrated else None),
        plugins=tuple(plugins),
    )
    exported = export(request)
    print(f"{request.out}: {exported.summary()}")
    if arguments.verify:
        print(f"verified in a fresh process: relative difference of predictions {verify(exported, request):.1e}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
