"""Every reader, fed with a few mutated inputs; ``make test-fuzz`` feeds many."""

import pytest

from tests.fuzz.harness import fuzz
from tests.fuzz.readers import READERS


@pytest.mark.parametrize("name", READERS)
def test_a_reader_returns_a_value_or_its_own_error(name):
    result = fuzz(name, "1", count=60, seconds=60)
    assert result.faults == []
    assert result.inputs == 60
    assert result.values > 0, "no input gets past the first check"
