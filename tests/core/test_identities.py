"""Who clones are, and the folders that their identities are kept in."""

import json
import uuid

import attrs
import pytest

from vmcloner_core.errors import Conflict, InvalidRequest
from vmcloner_core.identities import (
    MAX_RECORD,
    Identities,
    authorized_keys,
    new_host_key,
    resolve,
)
from vmcloner_core.model import (
    IdentitySpec,
    ImageSource,
    Nic,
    NicSpec,
    Seed,
    Template,
)
from vmcloner_core.testing.samples import make_labels

LABELS = make_labels("web", 7, template="t1")
CLONE = uuid.UUID("0b0e0f10-1112-4314-9516-171819202122")
NICS = (Nic(spec=NicSpec(), mac="52:54:00:00:00:01"), Nic(spec=NicSpec(), mac="52:54:00:00:00:02"))


def template(**identity):
    source = ImageSource(builder="tiny")
    return Template(name="t1", image=source, identity=IdentitySpec(**identity))


def identity(values=None, nics=NICS, labels=LABELS, **spec):
    return resolve(template(**spec), labels, nics, CLONE, values or {}, ())


@pytest.fixture
def kept(tmp_path):
    return Identities(tmp_path / "identity")


def test_an_identity_is_the_same_each_time_and_new_with_each_run():
    assert identity() == identity()
    assert identity().hostname == "web-7"
    assert identity().machine_id == CLONE.hex
    again = identity(labels=attrs.evolve(LABELS, run="r2"))
    assert again.generation != identity().generation
    assert attrs.evolve(again, generation=identity().generation) == identity()


@pytest.mark.parametrize("text", ["\udcff", '\u00e4\u0000\n"', "\u00e4" * (MAX_RECORD - 2000)])
def test_what_is_kept_can_be_read_again(kept, text):
    values = {"motd": text}
    kept.make(LABELS, identity(), values)
    assert kept.find("web-7").values == values


def test_more_than_can_be_kept_is_refused_and_leaves_what_there_was(kept):
    too_much = {"motd": "x" * MAX_RECORD}
    with pytest.raises(InvalidRequest, match=r"web-7: .* characters"):
        kept.make(LABELS, identity(), too_much)
    assert not kept.folder.exists()
    kept.make(LABELS, identity(), {"motd": "hello"})
    with pytest.raises(InvalidRequest):
        kept.make(LABELS, identity(), too_much)
    assert kept.find("web-7").values == {"motd": "hello"}
    assert kept.remove(LABELS)


def test_texts_hold_placeholders_and_a_clone_may_have_its_own():
    named = identity(hostname="h{{ index }}.example.org", addresses=("10.0.0.{{ 10 + index }}/24",))
    assert named.hostname == "h7.example.org"
    assert [card.address for card in named.interfaces] == ["10.0.0.17/24", None]
    own = {"hostname": "other", "address": "10.0.0.99/24", "machine_id": "a" * 32}
    given = identity(own, addresses=("dhcp", "fd00::7/64"))
    assert (given.hostname, given.machine_id) == ("other", "a" * 32)
    assert [card.address for card in given.interfaces] == ["10.0.0.99/24", "fd00::7/64"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"hostname": "-x"}, "hostname"),
        ({"hostname": "a b"}, "hostname"),
        ({"hostname": "a" * 64}, "hostname"),
        ({"hostname": "{{ nobody }}"}, "hostname"),
        ({"machine_id": "{{ name }}"}, "machine_id"),
        ({"machine_id": "0" * 32}, "machine_id"),
        ({"addresses": ("10.0.0.1",)}, "addresses: .* prefix length"),
        ({"addresses": ("10.0.0.0/24",)}, "addresses: .* no host's address"),
        ({"addresses": ("10.0.0.300/24",)}, "addresses: '10.0.0.300"),
        ({"addresses": ("dhcp",) * 3}, "addresses: 3 for 2 network cards"),
        ({"gateway": "10.0.0.0/24"}, "gateway: '10.0.0.0/24'"),
        ({"gateway": "foo"}, "gateway: 'foo'"),
        ({"nameservers": ("10.0.0.1", "foo")}, "nameservers: 'foo'"),
    ],
)
def test_what_makes_no_identity_is_refused(spec, reason):
    with pytest.raises(InvalidRequest, match=reason) as caught:
        identity(**spec)
    assert "identity." in caught.value.message


def test_public_keys_are_checked_and_read_from_files(tmp_path):
    _, public = new_host_key("me@here")
    file = tmp_path / "keys"
    file.write_text(f"# mine\n\n{public}\n")
    assert authorized_keys(template(authorized_keys=(public, str(file)))) == (public,)


@pytest.mark.parametrize(
    "key",
    [
        "ssh-ed25519 AAAA",
        "ssh-ed25519",
        "hello",
        "",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "ssh-rsa AAAAB3NzaC1yc2E= x\nssh-ed25519 y",
        "/nowhere/to/be/found.pub",
    ],
)
def test_what_is_no_public_key_is_refused(key):
    with pytest.raises(InvalidRequest, match=r"identity\.authorized_keys"):
        authorized_keys(template(authorized_keys=(key,)))


def test_a_home_has_labels_a_secret_key_and_known_hosts(kept):
    home = kept.make(LABELS, identity(), {"port": 8007})
    assert (home.folder / "ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert (home.folder / "record.json").stat().st_mode & 0o777 == 0o600
    kind, key = home.host_key_public.split()[:2]
    assert (home.folder / "known_hosts").read_text().split()[:3] == ["web-7", kind, key]
    assert home.host_key not in repr(home)
    record = kept.find("web-7")
    assert (record.labels, record.identity, record.values) == (LABELS, identity(), {"port": 8007})
    kept.seal(LABELS, Seed(image=home.folder / "seed.iso", cmdline="a=b"))
    assert kept.find("web-7").seed == Seed(image=home.folder / "seed.iso", cmdline="a=b")


def test_making_again_keeps_the_key_and_removing_again_succeeds(kept):
    first = kept.make(LABELS, identity(), {})
    assert kept.make(LABELS, identity(), {}) == first
    assert [record.labels for record in kept.records()] == [LABELS]
    assert kept.remove(LABELS)
    assert not kept.remove(LABELS)
    assert list(kept.folder.iterdir()) == []
    assert kept.make(LABELS, identity(), {}).host_key != first.host_key


def test_what_is_another_clones_or_not_ours_is_left(kept):
    kept.make(LABELS, identity(), {})
    other = attrs.evolve(LABELS, template="t2")
    for change in (lambda: kept.make(other, identity(), {}), lambda: kept.remove(other)):
        with pytest.raises(Conflict, match="t1"):
            change()
    foreign = kept.folder / "web-8"
    foreign.mkdir()
    (foreign / "record.json").write_text(json.dumps({"labels": {"fleet": "web"}}))
    eighth = attrs.evolve(LABELS, index=8)
    for change in (lambda: kept.make(eighth, identity(), {}), lambda: kept.remove(eighth)):
        with pytest.raises(Conflict, match="isn't vmcloner's"):
            change()
    assert foreign.exists()
    assert len(kept.records()) == 1


def test_what_killed_runs_left_is_made_anew_and_removed(kept):
    """A draft is what a run left that was killed while it made a folder, or removed one."""
    draft = kept.folder / ".web-7.draft"
    draft.mkdir(parents=True)
    (draft / "ssh_host_ed25519_key").write_text("half")
    assert kept.records() == ()
    assert "half" not in kept.make(LABELS, identity(), {}).host_key
    draft.mkdir()
    kept.remove(LABELS)
    assert list(kept.folder.iterdir()) == []
