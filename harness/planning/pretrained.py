"""The pretrained weights that a plan starts its runs from."""

from __future__ import annotations

from dataclasses import dataclass

from harness.models.checkpoint import require_finite
from harness.models.fingerprints import fingerprint, is_remembered, short_fingerprint
from harness.planning.needs import weights
from harness.planning.request import Request
from harness.protocols.card import Protocol


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A checkpoint: its path, its fingerprint and the short one that older records name it by; empty for random weights."""

    path: str = ""
    fingerprint: str = ""
    short: str = ""


def pretrained(request: Request, backbone: str, protocol: Protocol, missing: list[str]) -> Pretrained:
    """The checkpoint that a request gives a backbone; one that is not there is a line in ``missing``.

    Raises:
        UsageError: it does not fit, or its numbers are not finite.
    """
    path = request.checkpoints.get(backbone, request.checkpoints.get(""))
    if path is None:
        if protocol.data == "files":
            missing.append(
                f"no checkpoint of {backbone} is given or set: give {weights(backbone)} with --checkpoint FILE, "
                "or --checkpoint none to start from random weights"
            )
        return Pretrained()
    if str(path) == "none":
        return Pretrained()
    if not path.is_file():
        missing.append(f"checkpoint {path} does not exist; give the path of the pretrained {backbone} file")
        return Pretrained(path=str(path), fingerprint="missing")
    from harness.models.build import require_checkpoint  # imports torch, which other plans need not wait for

    require_checkpoint(backbone, path)
    if not is_remembered(path):  # all of it is read once, for its numbers and for its fingerprint
        require_finite(path)
    return Pretrained(path=str(path.absolute()), fingerprint=fingerprint(path), short=short_fingerprint(path))
