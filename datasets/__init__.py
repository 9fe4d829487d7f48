"""Where methods are compared: one benchmark, one file. Importing this package reads nothing.

This folder is named as a well-known package of the Hugging Face hub is; nothing here needs that one (see
ARCHITECTURE.md).
"""

BUILTIN = {
    "kvasir": "datasets.kvasir:Kvasir",
    "cvc612": "datasets.cvc612:CVC612",
    "isic2017": "datasets.isic2017:ISIC2017",
    "camo": "datasets.camo:CAMO",
    "sbu": "datasets.sbu:SBU",
    "leaf": "datasets.leaf:Leaf",
    "road": "datasets.road:Road",
    "trans10k_v1": "datasets.trans10k_v1:Trans10KV1",
    "trans10k_v2": "datasets.trans10k_v2:Trans10KV2",
}
"""Images with masks."""

LABELLED = {"origin": "datasets.origin:ImageOrigin"}
"""Images with one label each, made of the others; the word ``all`` leaves them out."""
