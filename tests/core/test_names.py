"""Names, node sets, labels: for any input, a value or one clear error."""

import re
import string
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core import names
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


@pytest.mark.parametrize(
    "word",
    [
        "@group",
        "web-*",
        "[",
        "",
        "web-[1-3",
        "web-[",
        "[]a-[1-999999]",
        "7[-999]",
        "a[1,]",
        "web-[1]" * 700,
    ],
)
def test_words_that_are_no_targets(word):
    with pytest.raises(InvalidRequest, match="not a target"):
        parse_targets([word])


@pytest.mark.parametrize(
    "words",
    [
        ["web-[1-100001]"],
        ["web-[1-999999]"],
        ["web-[1-99999999999]"],
        ["web-[1-60000],db-[1-60000]"],
        ["web-[1-60000]", "web-[1-60000]"],
        [f"a{n}-[1-1700]" for n in range(60)],
        ["a[1-400]-[1-400]"],
        ["a[1-100][1-100]-[1-100]"],
        ["a[1-40000,50000-99999,7-20000]"],
        ["web-[" + ",".join(["1-9999"] * 400) + "]"],
    ],
)
def test_node_sets_that_are_too_large_are_never_expanded(words, monkeypatch):
    monkeypatch.setattr(names, "_expand", lambda word: pytest.fail(f"{word} was expanded"))
    with pytest.raises(InvalidRequest, match="more than 100000 clones") as caught:
        parse_targets(words)
    assert len(str(caught.value)) < 200


def test_as_many_clones_as_can_be_named():
    (target,) = parse_targets(["web-[1-50000]", "web-[50001-100000]"])
    assert target.indices == tuple(range(1, 100_001))
    assert target.matches("web", 100_000)
    assert not target.matches("web", 100_001)
    assert not target.matches("db", 1)


@given(st.sets(st.integers(1, 99)), st.integers(1, 101))
def test_a_target_matches_its_clones(indices, index):
    target = Target(fleet="web", indices=tuple(sorted(indices)))
    assert target.matches("web", index) == (index in indices)


@given(st.text(alphabet="a-[]0123456789,/", max_size=60).filter(lambda text: len(text) < 60))
def test_no_node_set_is_larger_than_it_is_counted(text):
    text = re.sub("[0-9]{3,}", "7", text)
    try:
        found = names._expand(text)
    except InvalidRequest:
        return
    assert len(found) <= max(1, names._count(text))


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
