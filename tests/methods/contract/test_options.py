"""Methods with options that change what they insert, but for cells."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import Options, under_every_clause

OPTIONS: list[tuple[str, Options]] = [
    ("convlora", {"gate": "switch", "expert_bias": "zero"}),
    ("convlora", {"scope": "image", "sites": "q,v"}),
    ("ssf", {"init": "released", "outside": False}),
    ("bitfit", {"outside": False}),
    ("layernorm", {"outside": False}),
    ("fact", {"form": "tk", "sites": "q,v,mlp", "rank": 4}),
    ("adapter", {"sites": "mlp", "hidden": 8}),
    ("vpt", {"blocks": "global", "tokens": 3}),
    ("lst", {"blocks": "0,2-3", "reduction": 4}),
    ("samadapter", {"scale": 16, "blocks": "windowed", "patch_embedding": "released"}),
    ("lora", {"sites": "q,k,v,proj,mlp", "blocks": "1,3"}),
    ("lora", {"scaling": "rslora", "rate_ratio": 4.0, "rank": 9}),
    ("samed", {"initialisation": "pissa"}),
    ("lora", {"sites": "decoder"}),
    ("vera", {"sites": "qkv,decoder", "rank": 8}),
    ("dora", {"initialisation": "pissa", "sites": "proj,mlp"}),
]


@under_every_clause(OPTIONS)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
