"""Records outlive power cuts; damaged and missing ones don't leave clones half done."""

import os
from pathlib import Path

import attrs
import pytest

from tests.core.test_identities import LABELS, kept, somebody  # noqa: F401 - a fixture
from vmcloner_core import State
from vmcloner_core.errors import Conflict, HostCommandError
from vmcloner_core.model import Seed
from vmcloner_core.testing.reference import ReferenceHypervisor


@pytest.fixture
def disk(monkeypatch):
    """Record in order what gets onto the disk, and which names are given."""
    done = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor):
        done.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def renamed(path, target):
        done.append(("rename", Path(target).name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    return done


def test_records_are_on_the_disk_before_they_have_names(kept, disk):  # noqa: F811
    specs = [somebody(labels=attrs.evolve(LABELS, index=index)) for index in (1, 2, 3)]
    assert all(outcome.ok for outcome in kept.keep_all(specs))
    names = [("rename", f"web-{index}") for index in (1, 2, 3)]
    first = disk.index(names[0])
    files = ("record.json", "ssh_host_ed25519_key", "known_hosts")
    assert sorted(disk[:first]) == sorted(3 * [("sync", name) for name in files])
    assert disk[first:] == [*names, ("sync", "identity")], "one write of the folder for them all"


def test_a_changed_record_is_on_the_disk_before_it_has_its_name(kept, disk):  # noqa: F811
    kept.keep(somebody())
    disk.clear()
    kept.update("web-7", seed=Seed(image=Path("/x")))
    assert [event for event, _ in disk] == ["sync", "rename"]


def test_a_disk_that_fails_fails_the_records(kept, monkeypatch):  # noqa: F811
    def fail(_descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(HostCommandError, match="Input/output error"):
        kept.keep(somebody())
    assert kept.names() == frozenset()


def test_a_record_that_cannot_be_named_fails_alone(kept, monkeypatch):  # noqa: F811
    rename = Path.rename

    def fail(path, target):
        if Path(target).name == "web-2":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    specs = [somebody(labels=attrs.evolve(LABELS, index=index)) for index in (1, 2, 3)]
    errors = {outcome.key: outcome.error for outcome in kept.keep_all(specs)}
    assert errors.pop("web-2") is not None
    assert errors == {"web-1": None, "web-3": None}
    assert kept.names() == {"web-1", "web-3"}


def test_drafts_of_killed_runs_go_with_the_next_change(kept):  # noqa: F811
    kept.keep(somebody())
    (kept.folder / "web-7" / ".record.json.draft").write_text("half")
    kept.update("web-7", restart=True)
    names = {path.name for path in (kept.folder / "web-7").iterdir()}
    assert names == {"record.json", "ssh_host_ed25519_key", "known_hosts"}


@pytest.mark.parametrize("how", ["damaged", "another template's", "no record"])
def test_a_delete_that_cannot_remove_a_record_removes_nothing(lab, how):
    lab.engine.create("web", "t1", count=3, start=True)
    home = lab.engine.host.records / "web-2"
    record = home / "record.json"
    if how == "damaged":
        record.write_text("")
    elif how == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text().replace('"t1"', '"t2"'))
    with pytest.raises(Conflict, match="web-2"):
        lab.engine.delete("web")
    assert {clone.state for clone in lab.engine.list()} == {State.RUNNING}
    assert len(lab.engine.list()) == 3
    record.unlink(missing_ok=True)
    home.rmdir()
    lab.engine.delete("web")
    assert lab.engine.list() == ()


@pytest.mark.parametrize("action", ["reset", "restart"])
def test_a_clone_without_a_record_is_started_again_after_an_interruption(lab, monkeypatch, action):
    """As one of an older version has none."""
    lab.engine.create("web", "t1", count=1, start=True)
    home = lab.engine.host.records / "web-1"
    (home / "record.json").unlink()
    home.rmdir()
    before = lab.engine.show("web-1").domain
    destroy = ReferenceHypervisor.destroy

    class Killed(BaseException):
        pass

    def killed(self, names):
        list(destroy(self, names))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ReferenceHypervisor, "destroy", killed)
        with pytest.raises(Exception, match=r"."):
            getattr(lab.engine, action)("web", **({"kill": True} if action == "restart" else {}))
    assert lab.engine.show("web-1").state is State.STOPPED
    lab.engine.reset("web")
    after = lab.engine.show("web-1").domain
    assert after.state is State.RUNNING
    assert (after.uuid, after.macs) == (before.uuid, before.macs)
    record = lab.engine._host.records.find("web-1")
    assert (record.uuid, record.macs, record.restart) == (before.uuid, before.macs, False)
    lab.engine.delete("web")
    assert lab.engine.list() == ()
