"""Every method on a small TinyViT as MobileSAM's: blocks of several widths and maps, q, k and v by head, batch norms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness import methods
from harness.methods.parts.placement import MethodError
from harness.models.catalog import backbone_shape
from harness.registry import METHODS, method_config_class
from tests.methods.contract.cases import under_every_clause

REFUSED = {"lst": "one ladder", "samadapter": "one embedding"}


@under_every_clause(((name, {}) for name in methods.BUILTIN if name not in REFUSED), backbone="tiny_mobile_sam")
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_blocks_of_one_width_is_refused_in_one_line(name: str) -> None:
    from harness.models.build import build_segmenter

    config = method_config_class(name)()
    with pytest.raises(MethodError, match=REFUSED[name]) as caught:
        config.encoder_parameters(backbone_shape("tiny_mobile_sam"))
    assert "\n" not in str(caught.value)
    with pytest.raises(MethodError, match=REFUSED[name]):
        METHODS.get(name)(config).attach(build_segmenter("tiny_mobile_sam", task="binary"))
