"""Who clones are, and the folders that their identities are kept in."""

import json
import uuid

import attrs
import pytest

from vmcloner_core.errors import Conflict, InvalidRequest
from vmcloner_core.identity_rules import authorized_keys, resolve
from vmcloner_core.model import (
    CloneSpec,
    IdentitySpec,
    ImageSource,
    Nic,
    NicSpec,
    Seed,
    Template,
)
from vmcloner_core.records import MAX_RECORD, Records, new_host_key
from vmcloner_core.testing.samples import make_labels

LABELS = make_labels("web", 7, template="t1")
CLONE = uuid.UUID("0b0e0f10-1112-4314-9516-171819202122")
NICS = (Nic(spec=NicSpec(), mac="52:54:00:00:00:01"), Nic(spec=NicSpec(), mac="52:54:00:00:00:02"))


def template(**identity):
    source = ImageSource(builder="tiny")
    return Template(name="t1", image=source, identity=IdentitySpec(**identity))


def clone(values=None, labels=LABELS, **spec):
    made_of = template(**spec)
    return CloneSpec(labels=labels, template=made_of, uuid=CLONE, nics=NICS, values=values or {})


def identity(values=None, labels=LABELS, **spec):
    return resolve(clone(values, labels, **spec), (), labels.run)


def somebody(values=None, labels=LABELS):
    """A clone with an identity."""
    return attrs.evolve(clone(values, labels), identity=identity())


@pytest.fixture
def kept(tmp_path):
    return Records(tmp_path / "identity")


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
    kept.keep(somebody(values))
    assert kept.find("web-7").values == values


def test_more_than_can_be_kept_is_refused_and_leaves_what_there_was(kept):
    too_much = {"motd": "x" * MAX_RECORD}
    with pytest.raises(InvalidRequest, match=r"web-7: .* characters"):
        kept.keep(somebody(too_much))
    assert not kept.folder.exists()
    kept.keep(somebody({"motd": "hello"}))
    with pytest.raises(InvalidRequest):
        kept.keep(somebody(too_much))
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
        ({"addresses": ("10.0.0.0/24",)}, "addresses: .* not a host address"),
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


def test_a_file_of_no_keys_is_not_shown(tmp_path):
    file = tmp_path / "shadow"
    file.write_text("# comment\nroot:$6$secret:19000:0\n")
    with pytest.raises(InvalidRequest, match=r"shadow, line 2: not a public key") as caught:
        authorized_keys(template(authorized_keys=(str(file),)))
    assert "secret" not in str(caught.value)


def test_a_home_has_labels_a_secret_key_and_known_hosts(kept):
    kept.keep(somebody({"port": 8007}))
    home = kept.home("web-7")
    assert (home.folder / "ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert (home.folder / "record.json").stat().st_mode & 0o777 == 0o600
    kind, key = home.host_key_public.split()[:2]
    assert (home.folder / "known_hosts").read_text().split()[:3] == ["web-7", kind, key]
    assert home.host_key not in repr(home)
    record = kept.find("web-7")
    assert (record.labels, record.identity, record.values) == (LABELS, identity(), {"port": 8007})
    kept.update("web-7", seed=Seed(image=home.folder / "seed.iso", cmdline="a=b"))
    assert kept.find("web-7").seed == Seed(image=home.folder / "seed.iso", cmdline="a=b")


def test_making_again_keeps_the_key_and_removing_again_succeeds(kept):
    kept.keep(somebody())
    first = kept.home("web-7")
    kept.keep(somebody())
    assert kept.home("web-7") == first
    assert kept.names() == {"web-7"}
    assert kept.remove(LABELS)
    assert not kept.remove(LABELS)
    assert list(kept.folder.iterdir()) == []
    kept.keep(somebody())
    assert kept.home("web-7").host_key != first.host_key


def test_what_is_another_clones_or_not_ours_is_left(kept):
    kept.keep(somebody())
    other = attrs.evolve(LABELS, template="t2")
    for change in (lambda: kept.keep(somebody(labels=other)), lambda: kept.remove(other)):
        with pytest.raises(Conflict, match="t1"):
            change()
    foreign = kept.folder / "web-8"
    foreign.mkdir()
    (foreign / "record.json").write_text(json.dumps({"labels": {"fleet": "web"}}))
    eighth = attrs.evolve(LABELS, index=8)
    for change in (lambda: kept.keep(somebody(labels=eighth)), lambda: kept.remove(eighth)):
        with pytest.raises(Conflict, match=r"record\.json is damaged or another clone's"):
            change()
    (foreign / "record.json").unlink()
    for change in (lambda: kept.keep(somebody(labels=eighth)), lambda: kept.remove(eighth)):
        with pytest.raises(Conflict, match="isn't vmcloner's"):
            change()
    assert foreign.exists()
    assert kept.of(kept.names()).keys() == {"web-7"}


def test_what_killed_runs_left_is_made_anew_and_removed(kept):
    """A draft is what a run left that was killed while it made a folder, or removed one."""
    draft = kept.folder / ".web-7.draft"
    draft.mkdir(parents=True)
    (draft / "ssh_host_ed25519_key").write_text("half")
    assert not kept.names()
    kept.keep(somebody())
    assert "half" not in kept.home("web-7").host_key
    draft.mkdir()
    kept.remove(LABELS)
    assert list(kept.folder.iterdir()) == []


def test_a_clone_without_an_identity_has_a_record_and_no_key(kept):
    kept.keep(clone({"role": "db"}))
    assert [path.name for path in (kept.folder / "web-7").iterdir()] == ["record.json"]
    record = kept.find("web-7")
    assert (record.uuid, record.macs, record.identity) == (CLONE, tuple(n.mac for n in NICS), None)
    assert kept.known_hosts("web-7") is None
    kept.keep(somebody({"role": "db"}))
    assert kept.known_hosts("web-7") is not None


def test_a_record_of_before_every_clone_had_one_is_read(kept):
    kept.keep(somebody())
    file = kept.folder / "web-7" / "record.json"
    old = json.loads(file.read_text())
    for key in ("uuid", "macs"):
        del old[key]
    new = kept.find("web-7")
    file.write_text(json.dumps(old))
    assert kept.find("web-7") == new


def test_a_record_that_is_nested_too_deeply_is_none(kept):
    folder = kept.folder / "web-7"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("[" * 100_000)
    assert kept.find("web-7") is None
