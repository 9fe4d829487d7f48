"""What each card needs before its runs can start, for the message to a user who lacks something."""

from __future__ import annotations

from harness.protocols.card import Protocol
from harness.protocols.load import card_names, load_protocol

FILES = {
    "vit_b": "SAM's sam_vit_b_01ec64.pth",
    "vit_l": "SAM's sam_vit_l_0b3195.pth",
    "vit_h": "SAM's sam_vit_h_4b8939.pth",
    "mobile_sam": "MobileSAM's mobile_sam.pt",
}
"""Of the repositories of segment-anything and MobileSAM."""
SMALL = 256
"""Pixels a side up to which a CPU will do."""
DEMO_TIME = "about 2 min for lora,naslora on two cores"
"""Measured once: 2:06 on two cores that others used too."""


def weights(backbone: str) -> str:
    """The pretrained file of a backbone, in words."""
    if backbone in FILES:
        return FILES[backbone]
    if backbone.startswith("sam2_hiera_"):
        return f"SAM 2.1's {backbone.replace('sam2', 'sam2.1')}.pt"
    return f"weights of timm's {backbone.removeprefix('timm/')}" if backbone.startswith("timm/") else "no weights"


def card_needs() -> str:
    """``demo: nothing, … · mini: …``: one line, cards with the same needs together."""
    cards: dict[str, list[str]] = {}
    for name in card_names():
        cards.setdefault(_needs(load_protocol(name)), []).append(name)
    order = sorted(cards, key=lambda needs: (not needs.startswith("nothing"), "GPU" in needs))
    return " · ".join(f"{', '.join(cards[needs])}: {needs}" for needs in order)


def _needs(card: Protocol) -> str:
    if card.data == "sample":
        return f"nothing, {DEMO_TIME}"
    device = "a CPU will do" if card.image_size <= SMALL else "a GPU"
    return f"images (--data), {weights(card.backbone)} (--checkpoint), {device}"
