"""A session small enough for tests."""

from __future__ import annotations

from harness.costing.session import Measured, Session
from harness.protocols.load import load_protocol
from harness.registry import method_config_class

SMALL = {"image_size": 64, "batch_size": 2, "epochs": 20}


def session_of(*names: str, **options: object) -> Session:
    protocol = load_protocol("demo", SMALL)
    rows = [Measured(method=name, config=method_config_class(name)(), variant=name) for name in names]
    return Session(rows=rows, backbone="vit_t", checkpoint=None, protocol=protocol, rounds=2, **options)  # type: ignore[arg-type]
