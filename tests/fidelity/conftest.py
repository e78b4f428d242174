"""How an experiment becomes a test."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.fidelity.laboratory import WRITTEN_WITH, Row


@pytest.fixture
def all_reached() -> Callable[..., None]:
    """all_reached(experiment, **settings): every row of it holds on the first bandits."""

    def check(experiment: Callable[..., list[Row]], **settings: Any) -> None:
        rows = experiment(WRITTEN_WITH[:3], **settings)
        assert rows
        assert not [row for row in rows if not row.ok]

    return check
