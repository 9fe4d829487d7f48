"""Options that several verbs share, with what is set where the command line is silent."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from harness.settings.read import load_settings, trusted_plugins
from harness.system.errors import UsageError
from harness.system.streams import say


def add_results(parser: argparse._ActionsContainer, help: str = "results folder (default: as set, else runs)") -> None:
    """``--results DIR``; see `results_of`."""
    parser.add_argument("--results", type=Path, metavar="DIR", help=help)


def results_of(arguments: argparse.Namespace) -> Path:
    """The results folder: the command line's, else the one that is set, else ``runs``.

    Raises:
        UsageError: its path is no text, which sweeps and jobs have to name it by.
    """
    found = Path(arguments.results or load_settings().results)
    try:
        os.path.abspath(found).encode()
    except UnicodeEncodeError:
        raise UsageError(f"--results {found}: the bytes of this path are no UTF-8; choose another folder") from None
    return found


def add_plugins(parser: argparse._ActionsContainer, help: str = "a file that defines more methods") -> None:
    """``--plugin FILE.py`` and ``--trust-settings``; see `plugins_of`."""
    parser.add_argument("--plugin", action="append", type=Path, default=[], metavar="FILE.py", help=help)
    parser.add_argument(
        "--trust-settings",
        action="store_true",
        help="run the code that harness.toml of this folder names (docs/settings.md)",
    )


def plugins_of(arguments: argparse.Namespace) -> list[Path]:
    """Plug-in files of the command line and of the settings, which are named before anything loads them.

    Raises:
        UsageError: ``harness.toml`` names code, and the command line does not trust it.
    """
    settings = load_settings()
    of_settings = trusted_plugins(settings, trust=arguments.trust_settings)
    if of_settings:
        say(f"plug-ins of {settings.origins['plugins'].name}: {', '.join(map(str, of_settings))}")
    return list(dict.fromkeys([*arguments.plugin, *of_settings]))
