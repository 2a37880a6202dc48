"""What a host lacks is found once, before any clone is made or started."""

import attrs
import pytest

from tests.conftest import TEMPLATE
from vmcloner_core.errors import BackendError, NotEnoughResources, NotFound
from vmcloner_core.model import HostResources, Needs
from vmcloner_core.preflight import check_memory

GIB = 1024**3
MISSING = NotFound("template t1: this host has no bridge 'nobr0'", hint="make it")


@pytest.fixture
def host(lab, monkeypatch):
    """Return a function that sets what the host says of domains, and gives what it was asked."""

    def says(answer):
        asked = []

        def check(what):
            asked.append(what)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(lab.machines, "check_domain", check)
        monkeypatch.setattr(lab.machines, "check_defined", check)
        return asked

    return says


def test_nothing_is_made_where_something_is_missing(lab, host):
    asked = host(MISSING)
    with pytest.raises(NotFound, match="no bridge 'nobr0'"):
        lab.engine.create("web", "t1", count=500)
    assert len(asked) == 1
    assert not lab.pool.disks
    assert not lab.machines.machines
    assert not lab.pool.origins(), "the image wasn't imported either"
    host(Needs())
    assert lab.engine.create("web", "t1", count=3).ok


def test_the_check_sees_the_clones_disks_and_cards(lab, host):
    lab.template("t1", f'swap = "1MiB"\n{TEMPLATE}[domain]\ndisk_bus = "scsi"\n')
    asked = host(Needs())
    assert lab.engine.create("web", "t1", count=2).ok
    (spec,) = asked
    assert (spec.name, len(spec.volumes), len(spec.nics)) == ("web-1", 2, 1)
    assert spec.options.disk_bus == "scsi"
    assert not lab.engine.create("web", "t1", count=2).results, "nothing is left to do,"
    assert len(asked) == 1, "so nothing is asked"


def test_a_kernel_that_is_not_built_yet_does_not_keep_it_from_being_checked(lab, host, run):
    lab.template("t1", TEMPLATE.replace('boot = "reference"', 'boot = "kernel"') + """
[kernel]
path = "vmlinuz"
""")  # fmt: skip
    host(MISSING)
    code, _, err = run("create", "web", "-t", "t1")
    assert code in (3, 4)
    assert err.count("\n") == 1


def test_a_start_is_refused_where_no_clone_could_start(lab, host):
    lab.engine.create("web", "t1", count=3)
    lab.engine.create("db", "t2", count=3)
    asked = host(MISSING)
    for targets in (("web",), ("web", "db")):
        with pytest.raises(NotFound, match="no bridge"):
            lab.engine.start(*targets)
    assert len(asked) == 3, "one of each fleet is looked at"
    assert {str(state) for state in lab.machines.states().values()} == {"State.STOPPED"}


def test_where_only_some_can_start_the_others_do(lab, monkeypatch, run):
    lab.engine.create("web", "t1", count=2)
    lab.engine.create("db", "t2", count=2)

    def check(name):
        if name.startswith("web"):
            raise MISSING
        return Needs()

    monkeypatch.setattr(lab.machines, "check_defined", check)
    for index in (1, 2):
        lab.machines.fail["start", f"web-{index}"] = MISSING
    code, _, err = run("start", "web", "db")
    assert code == 10
    assert err.startswith("vmcloner: template t1: this host has no bridge 'nobr0' (make it)\n")
    running = {name for name, state in lab.machines.states().items() if state.value == "running"}
    assert running == {"db-1", "db-2"}


def test_warnings_are_told_once(lab, host, run):
    host(Needs(warnings=("this host drops packets",)))
    code, _, err = run("create", "web", "-t", "t1", "-n", "3")
    assert code == 0
    assert err.count("this host drops packets") == 1


def test_template_check_says_the_same(lab, host, run):
    host(MISSING)
    code, out, _ = run("template", "check", "t1", "-f", "value")
    assert code == run("create", "web", "-t", "t1")[0] == MISSING.exit_code
    assert "t1 host failed template t1: this host has no bridge 'nobr0' make it" in out
    host(Needs(warnings=("this host drops packets",)))
    code, out, _ = run("template", "check", "t1", "-f", "value")
    assert code == 0
    assert "t1 host warning this host drops packets" in out


def test_huge_pages_are_counted_apart(lab, host):
    resources = HostResources(
        memory_total=64 * GIB, memory_free=GIB, cpus=1, memory_overhead=1,
        pages={2 * 1024**2: 8 * 1024**2, GIB: 0},
    )  # fmt: skip
    check_memory([3 * 1024**2] * 2, resources, 1.0, page=0)
    with pytest.raises(
        NotEnoughResources, match=r"huge pages of 2 MiB, 8 MiB .*2 would fit; sysctl"
    ):
        check_memory([3 * 1024**2] * 3, resources, 9.0, page=0)
    with pytest.raises(NotEnoughResources, match=r"1048576kB/nr_hugepages"):
        check_memory([1], resources, 1.0, page=GIB)
    with pytest.raises(NotEnoughResources, match="of memory"):
        check_memory([1], attrs.evolve(resources, memory_free=0), 1.0, page=0)
    check_memory([GIB], attrs.evolve(resources, pages={}), 1.0, page=0)  # nothing is known
    host(Needs(page=0))
    assert lab.engine.create("web", "t1", count=1, start=True).ok


def test_a_host_that_does_not_answer_is_named(lab, host):
    host(BackendError("reference: no answer"))
    with pytest.raises(BackendError, match="no answer"):
        lab.engine.create("web", "t1")
