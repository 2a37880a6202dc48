"""Labels survive as LVM tags, whatever they say."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import Labels
from vmcloner_core.testing.samples import make_labels
from vmcloner_lvm import tags

keys = st.from_regex(r"[a-z_]{1,10}", fullmatch=True)
values = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(keys, values, min_size=1, max_size=6))
def test_any_labels_come_back(labels):
    encoded = tags.encode(labels)
    assert all(re.fullmatch(r"[A-Za-z0-9_+./=!:&#][A-Za-z0-9_+.\-/=!:&#]*", tag) for tag in encoded)
    assert tags.decode(["foreign", *reversed(encoded), "another"]) == labels


def test_a_clones_labels():
    labels = make_labels()
    mark, tag = tags.encode(labels.to_mapping())
    assert mark == "vmcloner"
    assert tag.startswith("vmcloner/version=1/fleet=web/index=1/template=tiny/")
    assert Labels.from_mapping(tags.decode([tag])) == labels


def test_too_long_labels_are_refused():
    with pytest.raises(InvalidRequest, match="1024"):
        tags.encode({"owner": "é" * 200})


@pytest.mark.parametrize("tag", ["vmcloner", "vmclonerx/version=1", "vmcloner/version", "other"])
def test_what_isnt_ours(tag):
    assert tags.decode([tag]) is None


def test_broken_utf8_isnt_ours():
    assert tags.decode(["vmcloner/owner=&FF"]) is None
    assert tags.decode(["vmcloner/owner=&41\udcff"]) is None
