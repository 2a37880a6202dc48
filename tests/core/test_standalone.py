"""A clone stands by itself: what it needs is in its record, wherever its template is now."""

import json

import attrs
import pytest

from tests.conftest import TEMPLATE, forget_templates
from vmcloner_core import State
from vmcloner_core.catalog import Catalog, shipped
from vmcloner_core.errors import NotFound
from vmcloner_core.model import (
    DiskSpec,
    IdentitySpec,
    ImageSource,
    KernelSpec,
    NicSpec,
    SshSpec,
    Template,
)
from vmcloner_core.request import CreateRequest, TargetRequest

OWN = (
    'disk_size = "4MiB"\nswap = "1MiB"\n' + TEMPLATE + '[[disks]]\nsize = "2MiB"\n'
    '[ssh]\nuser = "admin"\nport = 2222\n[values]\nrole = "db"\n'
)


@pytest.fixture
def web(lab, monkeypatch):
    """A clone whose template was in a folder that nobody is in any more."""
    lab.template("own", OWN)
    lab.engine.create("web", "own", count=2, start=True)
    monkeypatch.setattr(lab.machines, "addresses", lambda: {"web-1": ("192.0.2.7",)})
    known = lab.engine.host.records / "web-1" / "known_hosts"
    known.write_text("web-1 ssh-ed25519 AAAA\n")
    return lab


def gone(lab):
    (lab.folder / "templates" / "own.toml").unlink()


def changed(lab):
    lab.template("own", TEMPLATE.replace("256MiB", "512MiB").replace("ready name", "other"))


@pytest.mark.parametrize("became", [gone, changed])
def test_it_is_reached_started_waited_for_and_reset(web, became):
    became(web)
    access = web.engine.access("web-1")[0].unwrap()
    assert (access.user, access.port) == ("admin", 2222)
    wait = web.engine.plan(TargetRequest(action="wait", targets=("web",), ready=True))
    assert [str(clone.wait) for clone in wait.clones] == [
        f"console:ready name=web-{n} " for n in (1, 2)
    ]
    assert web.engine.restart("web", kill=True, ready=True).ok
    before = web.engine.show("web-1").volumes
    assert len(before) == 3
    assert web.engine.reset("web", ready=True).ok
    assert [v.size for v in web.engine.show("web-1").volumes] == [v.size for v in before]
    assert "web-1" in web.engine.domain_xml("web-1")


def test_the_same_create_again_leaves_it_as_it_was_made(web):
    """What it waits for is its own; a new clone is made of the template as it is now."""
    changed(web)
    plan = web.engine.plan(CreateRequest(fleet="web", template="own", count=3, ready=True))
    assert [str(clone.wait) for clone in plan.clones] == [
        "console:ready name=web-1 ", "console:ready name=web-2 ", "console:other=web-3 ",
    ]  # fmt: skip
    assert [clone.disks for clone in plan.clones] == [(), (), (0,)]
    assert web.engine.create("web", "own", count=3).ok
    labels = [clone.labels for clone in web.engine.list("web")]
    assert web.engine._host.made_of(labels[2]).memory == 512 * 1024**2
    assert web.engine._host.made_of(labels[0]).memory == 256 * 1024**2


def test_one_of_a_version_that_kept_no_template_uses_the_file(web):
    forget_templates(web.folder / "state")
    assert web.engine.access("web-1")[0].unwrap().user == "admin"
    assert web.engine.reset("web", ready=True).ok
    gone(web)
    assert isinstance(web.engine.access("web-1")[0].error, NotFound)
    assert web.engine.stop("web", kill=True).ok
    assert {clone.state for clone in web.engine.list()} == {State.STOPPED}


@pytest.mark.parametrize("written", [{"frobs": 1}, {"name": 3}, [], "x"])
def test_a_template_that_this_version_cannot_read_is_not_used(web, written):
    file = web.engine.host.records / "web-1" / "record.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "template": written}))
    assert web.engine.access("web-1")[0].unwrap().user == "admin"
    gone(web)
    assert isinstance(web.engine.access("web-1")[0].error, NotFound)


def test_every_template_comes_back_from_a_record_as_it_was(web, tmp_path):
    catalog = Catalog(tmp_path, [shipped()])
    templates = [catalog.template(name) for name in catalog.files()]
    templates.append(
        Template(
            name="all",
            image=ImageSource(url="https://example.org/a", sha256="0" * 64, format="qcow2"),
            disk_size=2**40,
            disks=(DiskSpec(size=512, content="swap"),),
            kernel=KernelSpec(path=tmp_path / "k", cmdline="ä {{ name }}"),
            nics=(NicSpec(), NicSpec(kind="bridge", source="br0")),
            ssh=SshSpec(key=tmp_path / "key"),
            identity=IdentitySpec(authorized_keys=("ssh-ed25519 A",), addresses=("dhcp",)),
            values={"a": 1, "b": "c"},
            folder=tmp_path,
            origin_file=tmp_path / "all.toml",
        )
    )
    home = web.engine.host.records / "web-1" / "record.json"
    clone = web.engine.show("web-1")
    (planned,) = web.engine.plan(CreateRequest(fleet="new", template="own")).clones
    for template in templates:
        spec = attrs.evolve(planned.known(), template=template, labels=clone.labels)
        web.engine._host.records.keep(spec)
        assert home.stat().st_size < 4096  # one block of most file systems
        assert web.engine._host.records.find("web-1").template() == template
