"""What every test gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.registry import BENCHMARKS, METHODS


@pytest.fixture(autouse=True)
def _registries_as_they_were() -> Iterator[None]:
    """A plug-in that one test loads is unknown to the next."""
    before = [(registry, dict(registry._loaded), dict(registry.broken)) for registry in (METHODS, BENCHMARKS)]
    yield
    for registry, loaded, broken in before:
        registry._loaded.clear()
        registry._loaded.update(loaded)
        registry.broken.clear()
        registry.broken.update(broken)
