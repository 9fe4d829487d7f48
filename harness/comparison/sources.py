"""What tables look at besides records: images beside them, the harness's cards, and what papers published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.comparison.alpha import AlphaOf, EndOf, no_alpha, no_end
from harness.comparison.evidence import EvidenceOf, no_evidence
from harness.comparison.paired import ImagesOf, no_images
from harness.comparison.published import Published
from harness.comparison.rules import CardOf, no_card
from harness.comparison.setups import Setup


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Handed in, so that reporting itself reads records and nothing else.

    Args:
        images_of: per-image scores, for paired intervals.
        alpha_of: the code of a run whose α says nothing.
        end_of: softmax(α) of a run at its end.
        evidence_of: what a run's model does inside.
        card_of: the harness's own cards, to say what a page was run with instead.
        published: numbers of papers.
        setups: paper -> what its numbers were made with; None to judge claims on whatever was run, for pages that say so.
    """

    images_of: ImagesOf = no_images
    alpha_of: AlphaOf = no_alpha
    end_of: EndOf = no_end
    evidence_of: EvidenceOf = no_evidence
    card_of: CardOf = no_card
    published: Sequence[Published] = ()
    setups: Mapping[str, Setup] | None = field(default_factory=dict)
