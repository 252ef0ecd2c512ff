"""Every test of an operator runs on every backend and device that has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from operator_cases import CASES, DTYPES, LAYOUTS, Place, places_of

from cscl_fast import use_backend


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`place` runs over the places of the module's OPERATOR, the others over the table.

    A module without one brings parameters of its own.
    """
    if not hasattr(metafunc.module, "OPERATOR"):
        return
    if "place" in metafunc.fixturenames:
        places = places_of(metafunc.module.OPERATOR)
        ids = [f"{place.backend}-{place.device}" for place in places]
        metafunc.parametrize("place", places, ids=ids, indirect=True)
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=[case.name for case in CASES])
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=[str(dtype)[6:] for dtype in DTYPES])
    if "layout" in metafunc.fixturenames:
        metafunc.parametrize("layout", LAYOUTS)


@pytest.fixture(autouse=True)
def _reference() -> Iterator[None]:
    """Tests that say nothing about backends run on the one that is always there."""
    with use_backend("reference"):
        yield


@pytest.fixture
def place(request: pytest.FixtureRequest, _reference: None) -> Iterator[Place]:
    with use_backend(request.param.backend):
        yield request.param
