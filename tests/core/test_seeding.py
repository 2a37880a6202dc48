"""Identities through the engine: made with a clone, kept with it, gone with it."""

import shutil

import pytest

from vmcloner_core import State
from vmcloner_core.drivers import IdentityProvider
from vmcloner_core.errors import HostCommandError, InvalidRequest, PartialFailure
from vmcloner_core.hooks import IdentityBackend, hookimpl
from vmcloner_core.locks import hold
from vmcloner_core.model import Outcome, Seed, Status
from vmcloner_core.plan import OnFailure
from vmcloner_core.records import new_host_key
from vmcloner_core.request import CreateRequest, TargetRequest

from ..conftest import TEMPLATE


class Notes(IdentityProvider):
    """Writes the host name into a file; fails for the clones in ``failing``."""

    def __init__(self):
        self.failing = set()

    def check(self, template):
        if template.identity.user_data is not None:
            raise InvalidRequest("no user_data here")

    def seed(self, requests):
        for request in requests:
            name = request.labels.clone
            if name in self.failing:
                yield Outcome(key=name, error=HostCommandError("no room"))
                continue
            image = request.folder / "seed.img"
            image.write_text(request.identity.hostname)
            yield Outcome(key=name, value=Seed(image=image))


@pytest.fixture
def notes(lab):
    provider = Notes()

    class Plugin:
        @hookimpl
        def vmcloner_identity_provider(self):
            return IdentityBackend(api=1, name="notes", description="", factory=lambda _: provider)

    backend = Plugin().vmcloner_identity_provider()
    lab.engine.plugins._loaded["identity", "notes"] = backend
    lab.template("t1", TEMPLATE + '[identity]\nprovider = "notes"\nauthorized_keys = []\n')
    return provider


def homes(lab):
    folder = lab.engine.host.records
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_clone_has_its_seed_as_long_as_it_lives(lab, notes):
    lab.engine.create("web", "t1", count=3, start=True)
    assert homes(lab) == ["web-1", "web-2", "web-3"]
    folder = lab.engine.host.records
    assert (folder / "web-2" / "seed.img").read_text() == "web-2"
    keys = {(folder / name / "known_hosts").read_text().split()[2] for name in homes(lab)}
    assert len(keys) == 3
    lab.engine.restart("web", kill=True)
    lab.engine.delete("web-2")
    assert homes(lab) == ["web-1", "web-3"]
    lab.engine.delete("web")
    assert homes(lab) == []


def test_a_clone_keeps_its_own_values(lab, notes):
    """Those that it was made with are what its ``ready`` and its boots are filled in by."""
    text = TEMPLATE.replace("{{ name }}", "{{ role }}")
    lab.template("t1", text + '[identity]\nprovider = "notes"\nauthorized_keys = []\n')
    lab.engine.create("web", "t1", count=2, values={1: {"role": "db"}, 2: {"role": "web"}})
    again = CreateRequest(fleet="web", template="t1", count=2, ready=True)
    wait = TargetRequest(action="wait", targets=("web",), ready=True)
    for request in (again, wait):
        waits = [str(clone.wait) for clone in lab.engine.plan(request).clones]
        assert waits == ["console:ready name=db ", "console:ready name=web "]


def test_a_clone_is_reached_with_its_templates_key(lab, notes, monkeypatch):
    text = TEMPLATE + '[identity]\nprovider = "notes"\nauthorized_keys = []\n'
    lab.template("t1", text + '[ssh]\nkey = "id_web"\n')
    lab.engine.create("web", "t1", start=True)
    monkeypatch.setattr(lab.machines, "addresses", lambda: {"web-1": ("192.0.2.7",)})
    key = lab.folder / "templates" / "id_web"
    (refused,) = lab.engine.access("web-1")
    assert str(refused.error).startswith(f"template t1: ssh.key: {key} doesn't exist")
    key.touch()
    (reached,) = lab.engine.access("web-1")
    assert reached.unwrap().key == key


def test_the_same_create_again_keeps_the_keys(lab, notes):
    lab.engine.create("web", "t1", count=2)
    known = lab.engine.host.records / "web-1" / "known_hosts"
    before = known.read_text()
    del lab.machines.machines["web-1"]  # a run was killed before it defined this one
    assert lab.engine.create("web", "t1", count=3).ok
    assert known.read_text() == before
    lab.engine.delete("web")
    assert lab.engine.create("web", "t1", count=1).ok
    assert known.read_text() != before


def test_a_seed_that_fails_fails_its_clone(lab, notes):
    notes.failing.add("web-2")
    with pytest.raises(PartialFailure, match="1 of 3"):
        lab.engine.create("web", "t1", count=3)
    assert lab.engine.show("web-2").state is State.ALLOCATED
    notes.failing.clear()
    assert lab.engine.create("web", "t1", count=3).ok
    notes.failing.add("db-1")
    with pytest.raises(PartialFailure):
        lab.engine.create("db", "t1", count=1, on_failure="rollback")


@pytest.mark.parametrize("leftover", ["seed", "seed and volume", "seed and domain"])
def test_whatever_a_killed_run_left_with_a_seed_goes(lab, notes, leftover):
    lab.engine.create("web", "t1", count=1)
    if "volume" not in leftover:
        lab.pool.disks.clear()
    if "domain" not in leftover:
        del lab.machines.machines["web-1"]
    assert [clone.name for clone in lab.engine.list()] == ["web-1"]
    lab.engine.delete("web")
    assert lab.engine.list() == ()
    assert homes(lab) == []


def test_a_clone_of_which_only_the_seed_is_left_is_completed(lab, notes):
    lab.engine.create("web", "t1", count=1)
    lab.pool.disks.clear()
    lab.machines.machines.clear()
    plan = lab.engine.plan(CreateRequest(fleet="web", template="t1", count=1))
    assert plan.clones[0].steps == ("clone", "define")
    assert lab.engine.create("web", "t1", count=1, start=True).ok
    assert lab.engine.show("web-1").state is State.RUNNING


def test_an_identity_that_is_lost_is_made_again(lab, notes):
    """With another key, so as a new instance; of one that runs only once it is stopped."""
    lab.engine.create("web", "t1", count=2)
    lab.engine.start("web-2")
    before = {clone.name: clone.domain for clone in lab.engine.list()}
    generation = lab.engine._host.records.find("web-1").identity.generation
    shutil.rmtree(lab.engine.host.records)
    plan = lab.engine.plan(CreateRequest(fleet="web", template="t1", count=2))
    assert [(clone.name, clone.steps) for clone in plan.clones] == [("web-1", ("define",))]
    assert lab.engine.create("web", "t1", count=2).ok
    assert homes(lab) == ["web-1"]
    assert (lab.engine.host.records / "web-1" / "seed.img").read_text() == "web-1"
    assert lab.engine._host.records.find("web-1").identity.generation != generation
    assert lab.engine._host.records.find("web-1").labels == before["web-1"].labels
    lab.engine.stop("web-2", kill=True)
    assert lab.engine.create("web", "t1", count=2, start=True).ok
    assert homes(lab) == ["web-1", "web-2"]
    after = {clone.name: clone.domain for clone in lab.engine.list()}
    assert [d.macs for d in after.values()] == [d.macs for d in before.values()]
    assert lab.engine.create("web", "t1", count=2).plan.clones == ()


def test_an_identity_that_is_lost_with_a_disk_is_made_again_with_it(lab, notes):
    lab.engine.create("web", "t1", count=1)
    shutil.rmtree(lab.engine.host.records)
    lab.pool.disks.clear()
    assert lab.engine.create("web", "t1", count=1, start=True).ok
    assert homes(lab) == ["web-1"]


@pytest.mark.parametrize("lost", ["web-1-disk0", "web-1-disk1"])
def test_a_roll_back_keeps_the_identity_of_a_clone_that_was_there(lab, notes, lost):
    text = TEMPLATE.replace("[image]", 'swap = "1MiB"\n[image]')
    lab.template("t1", text + '[identity]\nprovider = "notes"\nauthorized_keys = []\n')
    lab.engine.create("web", "t1", count=1)
    known = lab.engine.host.records / "web-1" / "known_hosts"
    before = known.read_text()
    del lab.pool.disks[lost]
    lab.machines.fail["start", "web-1"] = HostCommandError("no")
    request = CreateRequest(
        fleet="web", template="t1", count=2, start=True, on_failure=OnFailure.ROLLBACK
    )
    assert set(lab.engine.run(request).rolled_back) == {"web-1", "web-2"}
    assert list(lab.machines.machines) == homes(lab) == ["web-1"]
    assert lost not in lab.pool.disks
    assert known.read_text() == before


def test_a_roll_back_keeps_a_domain_that_was_given_its_lost_identity_again(lab, notes):
    lab.engine.create("web", "t1", count=1)
    shutil.rmtree(lab.engine.host.records)
    notes.failing.add("web-1")
    with pytest.raises(PartialFailure):
        lab.engine.create("web", "t1", start=True, on_failure=OnFailure.ROLLBACK)
    assert list(lab.machines.machines) == ["web-1"]


@pytest.mark.parametrize("keys", ["authorized_keys = []", ""])
def test_no_key_of_the_user_is_needed(lab, notes, tmp_path, monkeypatch, keys):
    monkeypatch.setenv("HOME", str(tmp_path))
    lab.template("t1", TEMPLATE + f'[identity]\nprovider = "notes"\n{keys}\n')
    ask = CreateRequest(fleet="web", template="t1", count=1)
    assert lab.engine.plan(ask).warnings == ()  # vmcloner's own key lets in
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519.pub").write_text(new_host_key("me")[1] + "\n")
    plan = lab.engine.plan(ask)
    assert plan.warnings == ()
    assert len(plan.clones[0].spec.identity.authorized_keys) == (0 if keys else 1)


def test_planning_makes_no_key(lab, notes):
    plan = lab.engine.plan(CreateRequest(fleet="web", template="t1", count=2))
    assert [clone.spec.identity.hostname for clone in plan.clones] == ["web-1", "web-2"]
    assert homes(lab) == []


def test_what_the_provider_refuses_makes_nothing(lab, notes):
    text = TEMPLATE + '[identity]\nprovider = "notes"\nuser_data = "x"\n'
    lab.template("t1", text)
    with pytest.raises(InvalidRequest, match="no user_data here"):
        lab.engine.create("web", "t1", count=1)
    assert lab.engine.list() == ()


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        ('provider = "cloud-init"\nuser_data = "u.j2"\n', "'rol' is undefined"),
        ('provider = "cloud-init"\nnetwork_config = "u.j2"\n', "'rol' is undefined"),
        ('provider = "cloud-init"\nhostname = "{{ rol }}"\n', "'rol' is undefined"),
        ('provider = "cloud-init"\nauthorized_keys = ["x"]\n', "not a public key"),
    ],
)
def test_what_cannot_be_filled_in_is_refused_before_anything_is_made(lab, run, identity, reason):
    lab.template("t1", TEMPLATE + "[identity]\n" + identity)
    (lab.folder / "templates" / "u.j2").write_text("#cloud-config\nx: {{ rol }}\n")
    for words in ([], ["--dry-run"]):
        code, _, errors = run("create", "web", "-t", "t1", "-n", "3", *words)
        assert code == 3
        assert reason in errors
    assert lab.engine.list() == ()
    assert homes(lab) == []
    failed = [check for check in lab.engine.check_template("t1") if check.status is Status.FAILED]
    assert [check.name for check in failed] == ["identity"]
    assert reason in failed[0].detail


def test_what_is_filled_in_for_all_clones_is_refused_for_the_first_of_them(lab, tmp_path):
    text = TEMPLATE + '[identity]\nprovider = "cloud-init"\nauthorized_keys = []\n'
    lab.template("t1", text + 'user_data = "u.j2"\n')
    user_data = lab.folder / "templates" / "u.j2"
    user_data.write_text("#cloud-config\nx: {{ role }} {{ host_key_public }}\n")
    with pytest.raises(InvalidRequest, match="'role' is undefined"):
        lab.engine.create("web", "t1", count=2)
    given = {1: {"role": "db"}, 2: {"role": "web"}}
    assert lab.engine.create("web", "t1", count=2, values=given).ok
    user_data.write_text("{{")
    assert lab.engine.create("web", "t1", count=2, start=True).ok  # it has been read


def test_a_template_that_calls_an_unknown_name_ready_fails_its_check(lab):
    lab.template("t1", TEMPLATE.replace("{{ name }}", "{{ nam }}"))
    failed = [check for check in lab.engine.check_template("t1") if check.status is Status.FAILED]
    assert [check.name for check in failed] == ["ready"]


def test_a_provider_by_the_kernel_needs_a_kernel(lab):
    lab.template("t1", TEMPLATE + '[identity]\nprovider = "kernel-args"\n')
    with pytest.raises(InvalidRequest, match="needs a kernel command line"):
        lab.engine.create("web", "t1", count=1)


def test_addresses_are_shown_of_clones_that_run(lab, notes, monkeypatch):
    lab.engine.create("web", "t1", count=2)
    lab.engine.start("web-2")
    monkeypatch.setattr(lab.machines, "addresses", lambda: {"web-2": ("192.0.2.7", "192.0.2.8")})
    assert [clone.ip for clone in lab.engine.list("web")] == [None, "192.0.2.7"]
    assert lab.engine.show("web-2").ip == "192.0.2.7"


def test_an_address_by_plan_is_where_a_clone_is(lab, notes, monkeypatch):
    text = TEMPLATE + '[identity]\nprovider = "notes"\nauthorized_keys = []\n'
    lab.template("t1", text + 'addresses = ["192.0.2.{{ 10 + index }}/24"]\n')
    lab.engine.create("web", "t1", count=2)
    assert [clone.ip for clone in lab.engine.list("web")] == [None, None]
    lab.engine.start("web")
    assert [clone.ip for clone in lab.engine.list("web")] == ["192.0.2.11", "192.0.2.12"]
    monkeypatch.setattr(lab.machines, "addresses", lambda: {"web-2": ("192.0.2.99",)})
    assert [clone.ip for clone in lab.engine.list("web")] == ["192.0.2.11", "192.0.2.99"]


def test_a_delete_that_was_killed_leaves_a_clone_that_is_the_same_again(lab, notes):
    """Whatever part is left, the same create makes the same machine of it."""
    lab.engine.create("web", "t1", count=1)
    known = lab.engine.host.records / "web-1" / "known_hosts"
    before = known.read_text()
    del lab.machines.machines["web-1"]  # a delete got so far
    assert lab.engine.create("web", "t1", count=1, start=True).ok
    assert known.read_text() == before


def test_a_volume_that_cannot_be_deleted_keeps_its_identity(lab, notes):
    lab.engine.create("web", "t1", count=1)
    lab.pool.busy.add("web-1-disk0")
    with pytest.raises(PartialFailure):
        lab.engine.delete("web")
    assert homes(lab) == ["web-1"]
    lab.pool.busy.clear()
    lab.engine.delete("web")
    assert homes(lab) == []


def test_secrets_half_made_or_half_removed_are_swept(lab, notes):
    folder = lab.engine.host.records
    for fleet in ("web", "other"):
        draft = folder / f".{fleet}-3.draft"
        draft.mkdir(parents=True)
        (draft / "ssh_host_ed25519_key").write_text("secret")
    delete = TargetRequest(action="delete", targets=("web",))
    with hold(lab.engine.host.state, ["fleet/other"]):  # another run may be making it
        lab.engine.run(delete)
    assert homes(lab) == [".other-3.draft"]
    lab.engine.run(delete)
    assert homes(lab) == []
