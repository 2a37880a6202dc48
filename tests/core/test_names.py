"""Names, node sets, labels: for any input, a value or one clear error."""

import string
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import Labels, check_mac, clone_mac, clone_uuid
from vmcloner_core.names import (
    MAX_LABEL,
    Target,
    check_fleet,
    check_template,
    clone_name,
    fold,
    parse_targets,
    split_clone,
)
from vmcloner_core.testing.samples import make_labels

LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z])?", fullmatch=True)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../x",
        "a;b",
        "<x>",
        "a\nb",
        "a\n",
        "-a",
        "a-",
        "A",
        "ä",
        "a" * 62,
        "web-1",
        "web-0",
        "web-01",
        "web-1234567",
        "a_b",
        "a\0",
    ],
)
def test_hostile_fleet_names(name):
    with pytest.raises(InvalidRequest) as caught:
        check_fleet(name)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("word", ["domain-0", "domain-[0-2]", "0", str(uuid.UUID(int=0))])
def test_xens_own_domain_is_no_target(word):
    with pytest.raises(InvalidRequest, match="the host itself"):
        parse_targets([word])


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".a", "a..b", "a b", "A", "a" * 64])
def test_hostile_template_names(name):
    with pytest.raises(InvalidRequest):
        check_template(name)


@pytest.mark.parametrize("name", ["tiny", "debian-12", "ubuntu-24.04", "a_b"])
def test_template_names(name):
    assert check_template(name) == name


@given(st.text(max_size=80))
def test_any_text_is_a_dns_label_or_refused(text):
    try:
        name = check_fleet(text)
    except InvalidRequest as error:
        assert "\n" not in str(error)
        return
    assert set(name) <= set(string.ascii_lowercase + string.digits + "-")
    assert len(clone_name(name, 9)) <= MAX_LABEL
    assert split_clone(name) is None


@given(LABEL, st.integers(1, 999_999))
def test_clone_names_round_trip(fleet, index):
    assert split_clone(clone_name(fleet, index)) == (fleet, index)


def test_a_name_too_long_with_its_index_says_so():
    fleet = "a" * 61
    assert clone_name(fleet, 9)
    with pytest.raises(InvalidRequest, match="too long with its index"):
        clone_name(fleet, 10)


@given(LABEL, st.sets(st.integers(1, 5000), min_size=1, max_size=50))
def test_node_sets_round_trip(fleet, indices):
    folded = fold([f"{fleet}-{index}" for index in indices])
    assert parse_targets([folded]) == (Target(fleet=fleet, indices=tuple(sorted(indices))),)


@given(st.text(alphabet="web-[]0123456789,@*!&^/ \n", max_size=40))
def test_any_target_is_parsed_or_refused(text):
    try:
        targets = parse_targets([text])
    except InvalidRequest as error:
        assert "\n" not in str(error)
        return
    assert all(check_fleet(target.fleet) for target in targets)


def test_targets():
    assert parse_targets(["web", "db-2", "db-[3,1]", "db-2"]) == (
        Target(fleet="web"),
        Target(fleet="db", indices=(1, 2, 3)),
    )
    assert parse_targets(["web-3", "web"]) == (Target(fleet="web"),)


@pytest.mark.parametrize("word", ["web-[1-99999999999]", "@group", "web-*", "[", "web-[1-1000000]"])
def test_targets_that_would_explode_are_refused(word):
    with pytest.raises(InvalidRequest):
        parse_targets([word])


@given(LABEL, st.integers(1, 999_999), st.text(max_size=50), st.none() | st.text(max_size=20))
def test_labels_round_trip(fleet, index, owner, expires):
    original = make_labels(fleet=fleet, index=index, owner=owner, expires=expires)
    assert Labels.from_mapping(original.to_mapping()) == original


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=10)))
def test_what_is_no_label_is_none(mapping):
    assert Labels.from_mapping(mapping) is None


@pytest.mark.parametrize(
    "change", [{"version": "2"}, {"index": "x"}, {"index": "0"}, {"fleet": "../x"}, {"fleet": None}]
)
def test_malformed_labels_are_not_ours(change):
    mapping = {**make_labels().to_mapping(), **change}
    assert Labels.from_mapping({k: v for k, v in mapping.items() if v is not None}) is None


def test_a_newer_versions_additions_are_ignored():
    assert Labels.from_mapping({**make_labels().to_mapping(), "colour": "red"}) == make_labels()


@pytest.mark.parametrize("mac", ["01:00:00:00:00:01", "52:54:00:00:00", "x", "52:54:00:00:00:0g"])
def test_bad_mac(mac):
    with pytest.raises(InvalidRequest):
        check_mac(mac)


def test_derived_addresses_are_stable_and_differ():
    macs = {clone_mac("52:54:00", "local", "web", i, 0) for i in range(1, 200)}
    assert len(macs) == 199
    assert clone_mac("52:54:00", "local", "web", 1, 0) in macs
    assert clone_mac("52:54:00", "local", "web", 1, 0, attempt=1) not in macs
    uuids = {clone_uuid("local", "web", i, "tiny") for i in range(1, 200)}
    assert len(uuids) == 199
