"""A session small enough for tests."""

from __future__ import annotations

from harness.costing.session import Session
from harness.planning.plan import ConfiguredRow
from harness.protocols.load import for_backbone, load_protocol
from harness.registry import method_config_class

SMALL = {"image_size": 64, "batch_size": 2, "epochs": 20}


def session_of(*names: str, **options: object) -> Session:
    protocol = for_backbone(load_protocol("demo", SMALL), "tiny")
    rows = [ConfiguredRow(method=name, label=name, config=method_config_class(name)(), changed={}) for name in names]
    return Session(rows=rows, backbone="tiny", checkpoint=None, protocol=protocol, rounds=2, **options)  # type: ignore[arg-type]
