"""A row of the comparison resolved: a method's configuration under a protocol, what tables call it, how many parameters it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from harness.methods.parts.placement import MethodError
from harness.models.catalog import backbone_shape
from harness.planning.request import Variant
from harness.protocols.card import Protocol
from harness.registry import METHODS, method_config, method_config_class
from harness.system.errors import UsageError


def split_overrides(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """``lora.rank`` goes to the method ``lora``; every other key to the protocol."""
    protocol: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}
    names = set(METHODS.names())
    own_tables = {f.name for f in fields(Protocol)}
    for key, value in overrides.items():
        head, dot, rest = key.partition(".")
        if dot and head not in own_tables:
            methods.setdefault(METHODS.resolve(head), {})[rest] = value
        elif dot or key in own_tables:
            protocol[key] = value
        elif having := [name for name in names if key in {f.name for f in fields(method_config_class(name))}]:
            whose = "lora" if "lora" in having else min(having)
            raise UsageError(
                f"--set {key}={value}: {key} is an option of methods; say whose, such as {whose}.{key}={value}"
            )
        else:
            protocol[key] = value
    return protocol, methods


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """A method with its options under a protocol.

    Args:
        method: canonical name.
        label: what tables call it.
        changed: the fields of its configuration that differ from the card's own.
    """

    method: str
    config: Any
    label: str
    changed: Mapping[str, Any] = field(default_factory=dict)


def method_row(
    entry: Variant, protocol: Protocol, overrides: Mapping[str, Mapping[str, Any]], backbone: str
) -> MethodRow:
    """The row of an entry.

    Raises:
        UsageError: unknown method or field.
        MethodError: the placement does not fit the backbone.
    """
    method = METHODS.resolve(entry.method)
    config_class = method_config_class(method)
    known = {f.name for f in fields(config_class)}
    switches = {
        "fused": protocol.fused_cell,
        "gate": protocol.quirks.moe_gate,
        "init": protocol.quirks.ssf_init,
        "patch_embedding": protocol.quirks.samadapter_embedding,
    }
    values: dict[str, Any] = {key: value for key, value in switches.items() if key in known}
    values |= protocol.methods.get(method, {})
    base = method_config(method, values)
    asked = {**overrides.get(method, {}), **entry.options}
    config = method_config(method, {**values, **asked})
    changed = {name: value for name, value in asdict(config).items() if value != getattr(base, name)}
    # A placement or an image size that does not fit the backbone is found now, not on a worker.
    shape = backbone_shape(backbone, protocol.image_size)
    try:
        config.encoder_parameters(shape)
    except (UsageError, MethodError):
        raise
    except Exception as error:  # a plug-in may raise anything
        raise UsageError(
            f"method {method}: its encoder_parameters fails: {type(error).__name__}: {error}; mend it until "
            f"sam-peft doctor --methods {method} passes"
        ) from error
    label = entry.label or (f"{method}[{','.join(f'{k}={v}' for k, v in asked.items())}]" if asked else method)
    return MethodRow(method=method, config=config, label=label, changed=changed)
