"""Texts with placeholders: filled in whole, or refused."""

import pytest

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.placeholders import MAX_TEXT, fill


def test_a_text_is_filled_in_whole_up_to_its_limit():
    text = "{{ name }}".ljust(MAX_TEXT - 1, ".") + "!"
    assert fill(text, {"name": "web-1"}, what="x").endswith(".!")


@pytest.mark.parametrize("text", ["{{ name }}".ljust(MAX_TEXT + 1), "{{ '.' * 65537 }}"])
def test_a_text_beyond_its_limit_is_refused(text):
    with pytest.raises(InvalidRequest, match=r"t1: user_data: .* longer than 65536"):
        fill(text, {"name": "web-1"}, what="t1: user_data")
