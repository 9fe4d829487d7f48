"""What a card needs before its runs can start, for the message to a user who lacks something."""

from __future__ import annotations

from harness.protocols.load import card_names, load_protocol

SMALL = 256
"""Pixels a side up to which a CPU will do."""


def card_needs() -> str:
    """``demo: nothing; mobile: images (--data), mobile_sam's weights (--checkpoint); …``, cards for a CPU first."""
    names: dict[str, list[str]] = {}
    for name, card in sorted(
        ((name, load_protocol(name)) for name in card_names()), key=lambda both: both[1].image_size
    ):
        needs = (
            f"images (--data), {card.backbone}'s weights (--checkpoint){'' if card.image_size <= SMALL else ', a GPU'}"
        )
        names.setdefault("nothing, about 2 min" if card.data == "sample" else needs, []).append(name)
    return "; ".join(f"{', '.join(cards)}: {needs}" for needs, cards in names.items())
