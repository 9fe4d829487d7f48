"""Which rules and options enter a run's key and a protocol's hash, so that no change to their fields restarts a finished run.

Two rules keep keys as they are:

- A *new* field of a protocol, its quirks or a built-in method stays out of the hash at its default. A field is new if `FIRST_RULES`,
  `FIRST_QUIRKS` or `FIRST_OPTIONS`, which are closed, do not name it. Its default never changes.
- A *cut* field gets a line in `CUT_RULES` or `CUT_OPTIONS` with the value that it had in every run. If the closed lists name it, it
  stays in the hash as that constant; if it was new, it stays out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from harness.methods import default_options
from harness.models.known import IMAGENET, RENAMED
from harness.protocols.protocol import Protocol
from harness.system.errors import UsageError, shortened

EXECUTION_ONLY = ("checkpoint_minutes", "keep_masks", "tune", "normalisation")
"""Rules that never change a run's numbers; keys and hashes leave them out."""
GONE = ("log", "cache_prefix", "cache_images")
"""Rules of the same kind that only older records have."""
_LEFT_OUT = ("name", "backbone", *EXECUTION_ONLY, *GONE)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FIRST_RULES = _names(
    """accumulate activation_checkpointing batch_size benchmarks betas cache_embeddings calibration_images class_weight clip
    data dice_weight epochs eps evaluation flip fused_attention fused_cell image_size loss lr mask_tokens mask_weight merge
    methods optimizer pixel_mean pixel_std precision quirks road_missing_ignore schedule select_every split_rule split_seed
    test_limit train_limit val_limit warmup weight_decay"""
)
"""Rules that the hash always holds. The list is closed: a field that is not here is new."""
FIRST_QUIRKS = _names("structure_loss moe_gate ssf_init class_count selection camo_train mask_decoding strict_loading")
FIRST_CONVENTIONS = _names("resolution min_max weighted_f_beta2 overlap threshold ber_threshold empty")
FIRST_OPTIONS = {
    "adapter": _names("lr blocks sites hidden std"),
    "adaptformer": _names("lr blocks hidden scale"),
    "bitfit": _names("lr blocks outside"),
    "convlora": _names("lr blocks sites rank alpha experts gate scope balance"),
    "decoder": _names("lr"),
    "dora": _names("lr blocks sites rank alpha"),
    "fact": _names("lr blocks sites form rank scale"),
    "full": _names("lr encoder_lr"),
    "gralora": _names("lr blocks sites rank alpha k"),
    "hira": _names("lr blocks sites rank"),
    "layernorm": _names("lr blocks outside"),
    "lora": _names("lr blocks sites rank alpha"),
    "lst": _names("lr blocks reduction"),
    "mona": _names("lr blocks hidden"),
    "naslora": _names(
        NASLORA := "lr blocks sites rank scale style operations scope alpha_std alpha_lr alpha_weight_decay "
        "stagewise search_start_epoch alternate alpha_data alpha_holdout fused"
    ),
    "naspclora": _names(f"{NASLORA} channel_ratio"),
    "oft": _names("lr blocks sites block_size cayley"),
    "samadapter": _names("lr blocks scale ratio"),
    "samed": _names("lr blocks sites rank alpha"),
    "shira": _names("lr blocks sites rank"),
    "ssf": _names("lr blocks init outside"),
    "vera": _names("lr blocks sites rank initial"),
    "vpt": _names("lr blocks tokens"),
    "zeroshot": _names("lr"),
}
"""Options of built-in methods that the hash always holds. The list is closed: every option of a method that is not here is new. For
methods from elsewhere the hash holds all options, since their defaults are unknown where they are not installed."""

CUT_RULES: dict[str, Any] = {
    "road_missing_ignore": False,
    "statistics_batches": 0,
    "images": "",
    "masks": "",
    "quantise": "",
    "batched_decoder": True,
    "fused_cell": True,
}
"""Rules that are gone -> the value that every run had."""
CUT_OPTIONS: dict[str, Any] = {
    "order": "alpha-first",
    "residual": False,
    "norm": "batch",
    "alpha_optimizer": "protocol",
    "expert_bias": "uniform",
    "patch_embedding": "intended",
    "scaling": "lora",
    "rate_ratio": 1.0,
    "alpha_weight_decay": 0.0,
    "alpha_holdout": 0.5,
    "initialisation": "kaiming",
    "naslora.fused": True,
    "naslora.compiled": False,
    "naspclora.fused": True,
    "naspclora.compiled": False,
    "fact.form": "tt",
    "bitfit.outside": True,
    "layernorm.outside": True,
}
"""The same for options of methods; a name with a method (``fact.form``) applies to that method alone."""
OPTIONS_RENAMED = {("gate", "switch"): "intended"}
"""(option, value) -> the name of that value in the first records, which keys still use."""

PIXELS = ("pixel_mean", "pixel_std")
"""Rules that a protocol may leave to the backbone; in a run's rules they are numbers."""


def content_hash(data: Any) -> str:
    """First 16 hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hashed_rules(rules: Mapping[str, Any]) -> dict[str, Any]:
    """The rules that can change a number, as they enter hashes, without the names of protocol and backbone. ``rules`` may be only some
    of them; the constants of cut rules that `FIRST_RULES` names are always added."""
    named = {name: value for name, value in rules.items() if name not in _LEFT_OUT}
    kept = with_pixels(_hashed(named, first=FIRST_RULES, unchanged={**_defaults(), **CUT_RULES}, cut=CUT_RULES))
    for name, first in (("quirks", FIRST_QUIRKS), ("evaluation", FIRST_CONVENTIONS)):
        if isinstance(kept.get(name), Mapping):
            kept[name] = _hashed(kept[name], first=first, unchanged=_defaults()[name], cut={})
    if isinstance(kept.get("methods"), Mapping):
        methods = {name: _hashed_options(name, options, cut={}) for name, options in kept["methods"].items()}
        kept["methods"] = {name: options for name, options in methods.items() if options}
    return kept


def hashed_options(method: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A method's configuration as it enters keys and row identities."""
    return _hashed_options(method, config, cut=gone_options(method))


def gone_options(method: str) -> dict[str, Any]:
    """`CUT_OPTIONS` of one method, by plain names."""
    parts = ((*name.rpartition("."), value) for name, value in CUT_OPTIONS.items())
    return {option: value for whose, _, option, value in parts if whose in ("", method)}


def _hashed_options(method: str, config: Mapping[str, Any], *, cut: Mapping[str, Any]) -> dict[str, Any]:
    unchanged = {**gone_options(method), **default_options(method), **cut}
    return _hashed(first_names(config), first=FIRST_OPTIONS.get(method, ()), unchanged=unchanged, cut=cut)


def _hashed(
    values: Mapping[str, Any], *, first: Collection[str], unchanged: Mapping[str, Any], cut: Mapping[str, Any]
) -> dict[str, Any]:
    constants = {name: value for name, value in cut.items() if name in first}
    return {
        name: value
        for name, value in {**constants, **values}.items()
        if name in first or name not in unchanged or _plain(value) != _plain(unchanged[name])
    }


def with_pixels(rules: Mapping[str, Any]) -> dict[str, Any]:
    """The rules with ImageNet's normalisation where they leave it to the backbone, so that older protocols keep their hashes."""
    left = {name: list(first) for name, first in zip(PIXELS, IMAGENET, strict=True) if rules.get(name, "") is None}
    return {**rules, **left}


def with_later(rules: Mapping[str, Any]) -> dict[str, Any]:
    """A record's rules with the fields that are newer than the record, at their defaults."""
    known = FIRST_RULES.union(_LEFT_OUT)
    filled = {**{name: value for name, value in _defaults().items() if name not in known}, **rules}
    if isinstance(filled.get("quirks"), Mapping):
        filled["quirks"] = {
            **{name: value for name, value in _defaults()["quirks"].items() if name not in FIRST_QUIRKS},
            **filled["quirks"],
        }
    return filled


def rule(rules: Mapping[str, Any], name: str) -> Any:
    """One of a record's rules; its default where the rule is newer than the record."""
    return rules.get(name, _defaults().get(name))


def current_rules(rules: Mapping[str, Any]) -> dict[str, Any]:
    """A record's rules without those that are gone. Raises UsageError: one of them had another value than its constant."""
    for name in rules.keys() & CUT_RULES.keys():
        if _plain(rules[name]) != _plain(CUT_RULES[name]):
            raise UsageError(
                f"the rule {name}={shortened(repr(rules[name]))} of this run no longer exists; the run cannot be repeated"
            )
    return {name: value for name, value in rules.items() if name not in CUT_RULES and name not in GONE}


def current_options(method: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A record's options of a built-in method without those that are gone. Raises UsageError: one had another value than its constant."""
    constants, known = gone_options(method), default_options(method)
    gone = {name for name in config if known and name in constants and name not in known}
    for name in gone:
        if _plain(config[name]) != _plain(constants[name]):
            raise UsageError(
                f"the option {method}.{name}={shortened(repr(config[name]))} of this run no longer exists; the run cannot be repeated"
            )
    return {name: value for name, value in config.items() if name not in gone}


def first_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A method's configuration with every value under its name in the first records."""
    renamed = {key: new for (key, value), new in OPTIONS_RENAMED.items() if config.get(key) == value}
    return {**config, **renamed}


def first_backbone(name: str) -> str:
    """A backbone's name in the first records, which keys still use."""
    return next((old for old, new in RENAMED.items() if new == name), name)


@cache
def _defaults() -> dict[str, Any]:
    return {name: _plain(value) for name, value in asdict(Protocol(name="x")).items()}


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
