"""What a card needs before its runs can start, for the message to a user who lacks something."""

from __future__ import annotations

from harness.protocols.load import card_names, load_protocol

SMALL = 256
"""Pixels a side up to which a CPU will do."""


def card_needs() -> str:
    """``demo: nothing; mobile: images (--data), mobile_sam's weights (--checkpoint); …``, cards for a CPU first."""
    cards = sorted(((name, load_protocol(name)) for name in card_names()), key=lambda card: card[1].image_size)
    return "; ".join(
        f"{name}: nothing, about 2 min"
        if card.data == "sample"
        else f"{name}: images (--data), {card.backbone}'s weights (--checkpoint){'' if card.image_size <= SMALL else ', a GPU'}"
        for name, card in cards
    )
