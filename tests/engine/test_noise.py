"""What is filtered in a command comes back after it."""

import logging
import warnings

import pytest

from unimed.engine.noise import quiet


@pytest.mark.parametrize("rank", ["0", "1"])
def test_logging_and_warnings_come_back(monkeypatch, caplog, rank):
    monkeypatch.setenv("RANK", rank)
    ours = logging.getLogger("unimed.registry")
    filters = list(warnings.filters)
    with quiet():
        ours.warning("inside")
    assert ("inside" in caplog.text) == (rank == "0"), "the first rank speaks for all"
    ours.warning("after")
    assert "after" in caplog.text and warnings.filters == filters
