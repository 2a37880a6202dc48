"""Warm origins: what they depend on, who keeps them, and what none can be made of."""

import json
import shutil

import pytest

from tests.warm.forking import TEMPLATE, leftovers, memory, states
from vmcloner_core.errors import (
    BackendError,
    InvalidRequest,
    WrongState,
)
from vmcloner_core.hosts.beside import Asked, Beside
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import CloneMode, State
from vmcloner_core.request import CreateRequest
from vmcloner_core.warm_origins import WarmOrigins


def test_an_origin_is_made_once(warm):
    first = warm.warm_template("warm")
    assert first.changed
    assert not warm.warm_template("warm").changed
    (origin,) = warm.warm_origins("warm")
    assert origin == first.value
    assert (origin.depends["version"], origin.depends["at"]) == ("1", "ready")
    assert leftovers(warm) == ([origin.key], [origin.image], [])
    assert oct((memory(warm) / origin.key).stat().st_mode)[-2:] in ("00", "11")
    assert warm.leftovers() == ()  # template prune leaves it


def test_what_an_origin_depends_on_is_asked_once(warm, lab, monkeypatch):
    depends, asked = lab.machines.warm.depends, []
    monkeypatch.setattr(lab.machines.warm, "depends", lambda s: asked.append(s) or depends(s))
    warm.create("web", "warm", warm=True)
    assert len(asked) == 2  # before its image was imported, and once it was
    warm.create("web", "warm", count=2, warm=True)
    assert len(asked) == 3
    lab.machines.warm.version = "2"
    warm.create("web", "warm", count=3, warm=True)
    assert len(asked) == 4


def test_what_a_builder_makes_beside_the_image_counts_from_the_first_time(warm, lab, monkeypatch):
    """The kernel of tiny, for example: it isn't there before the import."""
    lab.template("built", TEMPLATE + '[kernel]\npath = "vmlinuz"\n')
    folder, real = warm.template("built").folder, LocalHost.import_image

    def built(*words):
        (folder / "vmlinuz").write_bytes(b"kernel")
        return real(*words)

    monkeypatch.setattr(LocalHost, "import_image", built)
    warm.create("web", "built", warm=True)
    assert not warm.warm_template("built").changed


def test_another_version_is_never_forked(warm, lab):
    old = warm.warm_template("warm").unwrap()
    lab.machines.warm.version = "2"
    warm.create("web", "warm", warm=True, start=True)
    (new,) = warm.warm_origins()
    assert new.depends["version"] == "2"
    assert new.key != old.key


def test_an_origin_that_clones_need_stays(warm, lab):
    warm.create("web", "warm", warm=True)
    old = warm.warm_origins()[0]
    lab.machines.warm.version = "2"
    warm.warm_template("warm")
    assert [o.depends["version"] for o in warm.warm_origins()] == ["2", "1"]
    with pytest.raises(WrongState, match="web-1 is to be forked"):
        warm.delete_template("warm")
    warm.start("web")
    with pytest.raises(WrongState, match="web-1"):
        warm.delete_template("warm")
    warm.delete("web")
    warm.delete_template("warm")
    assert warm.warm_origins() == ()
    assert leftovers(warm) == ([], [], [])
    assert not (memory(warm) / old.key).exists()


def test_gc_leaves_what_somebody_begins_meanwhile(warm, monkeypatch):
    """It holds no lock then: nothing was there when it looked."""
    real, begun = warm._host.survey, []

    def survey():
        if not begun:
            begun.append(warm._host.warm.new("warm", "files", "reference", {}))
            warm._host.warm.draft(begun[0])
        return real()

    monkeypatch.setattr(warm._host, "survey", survey)
    with warm._held(["warm"]):
        assert warm.gc() == ()
    assert begun[0].folder.is_dir()


def test_gc_leaves_what_is_whole_or_used(warm):
    warm.create("web", "warm", warm=True)
    (origin,) = warm.warm_origins()
    assert warm.gc() == ()
    (origin.folder / "origin.json").write_text("{")  # the clone's disk is linked to its image
    assert warm.gc() == ()
    assert leftovers(warm) == ([origin.key], [origin.image], [])


def test_a_hypervisor_without_forks(warm, lab):
    lab.machines.warm = None
    lab.machines.not_warm = "its guests share nothing"
    with pytest.raises(BackendError, match="no warm forks: its guests share nothing"):
        warm.create("web", "warm", warm=True)
    with pytest.raises(BackendError, match="no warm forks"):
        warm.warm_template("warm")


def test_a_pool_that_captures_nothing(lab):
    lab.template("warm", TEMPLATE)
    with pytest.raises(BackendError, match="pool 'reference' captures no disks"):
        lab.engine.create("web", "warm", warm=True)


def test_more_disks(warm, lab):
    lab.template("more", TEMPLATE.replace("[image]", 'swap = "64MiB"\n[image]'))
    with pytest.raises(InvalidRequest, match="disks beside its image"):
        warm.warm_template("more")


def test_labels_name_the_origin(warm):
    warm.create("web", "warm", warm=True)
    (clone,) = warm.list("web")
    (origin,) = warm.warm_origins()
    assert clone.labels.warm == origin.key
    assert clone.volumes[0].labels.warm == origin.key
    record = json.loads((warm.host.records / "web-1" / "record.json").read_text())
    assert record["labels"]["warm"] == origin.key


def test_a_note_that_is_damaged(warm):
    warm.warm_template("warm")
    (origin,) = warm.warm_origins()
    (origin.folder / "origin.json").write_text("{")
    assert warm.warm_origins() == ()
    assert warm.warm_template("warm").changed
    assert not origin.folder.exists()


def test_an_origin_stays_while_there_are_forks(warm):
    """A saved fork's memory is above the origin's; a reset needs its disk, also of full clones."""
    warm.create("web", "warm", warm=True, start=True, mode=CloneMode.FULL)
    (origin,) = warm.warm_origins()
    warm.save("web")
    with pytest.raises(WrongState, match="origin of warm is needed by what was forked: web-1"):
        warm.delete_warm("warm")
    assert warm.warm_origins() == (origin,)
    warm.delete("web")
    assert warm.delete_warm("warm") == (origin,)


def test_origins_of_others_in_a_shared_pool_stay(warm, tmp_path):
    """Images that have no folder here can be another host's; fleets can have any name."""
    other = warm.warm_template("warm").unwrap()
    shutil.move(other.folder, tmp_path / "of another host")
    warm.create(f"warm{'0' * 20}", "warm")
    own = warm.warm_template("warm").unwrap()
    assert warm.leftovers() == ()  # template prune leaves it
    images = {o.template for o in warm.origins() if o.template.startswith("warm-")}
    assert images == {other.image, own.image}
    assert states(warm, f"warm{'0' * 20}") != {}


def test_a_host_makes_its_origin_for_a_controller(warm):
    request = CreateRequest(fleet="web", template="warm", warm=True, start=True)
    beside = Beside(lambda _plugin: warm)
    beside.call_hold(Asked(fleets=("web",)), print)
    plan = beside.call_plan(Asked(request=request), print)
    assert beside.call_run(Asked(run=plan.run), print).ok
    beside.call_release(Asked(), print)
    assert states(warm, "web") == {"web-1": State.RUNNING}
    assert b"reseeded" in warm.read_console("web-1")[0]


def test_a_template_that_cannot_be_deleted_keeps_its_origin(warm):
    origin = warm.warm_template("warm").unwrap()
    warm.create("web", "warm")
    with pytest.raises(WrongState, match="web-1"):
        warm.delete_template("warm")
    assert warm.warm_origins() == (origin,)
    warm.delete("web")
    assert warm.delete_template("warm").changed
    assert leftovers(warm) == ([], [], [])


def test_prune_leaves_the_disk_of_an_origin_that_is_made(warm, monkeypatch):
    found, keep = [], WarmOrigins.keep

    def kept(origins, origin):
        found.append([o.template for o in warm.origins() if o.template == origin.image])
        found.append(warm.leftovers())
        keep(origins, origin)

    monkeypatch.setattr(WarmOrigins, "keep", kept)
    origin = warm.warm_template("warm").unwrap()
    assert found == [[origin.image], ()]
