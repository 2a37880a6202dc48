"""Drivers that yield what they must not: each call, each way; named with what they did.

A clone is never done by such a call, and keeps its record; the same command again succeeds.
"""

import threading
from pathlib import Path

import attrs
import pytest

from vmcloner_core import Engine, Sizes
from vmcloner_core.deadlines import answers
from vmcloner_core.drivers import IdentityProvider
from vmcloner_core.errors import PartialFailure, VmclonerError
from vmcloner_core.hooks import IdentityBackend, hookimpl
from vmcloner_core.model import Capacity, Outcome, Seed
from vmcloner_core.plan import Readiness
from vmcloner_core.steps.step import HypervisorStep, StorageStep
from vmcloner_core.testing.reference import BootPlugin, HypervisorPlugin, StoragePlugin

TEMPLATE = """
hypervisors = ["reference"]
boot = "reference"
[image]
path = "image.raw"
[identity]
provider = "notes"
"""
TITLES = {
    "pool": "storage 'reference'",
    "machines": "hypervisor 'reference'",
    "boot": "boot provider 'reference'",
    "notes": "identity 'notes'",
}
MIB = 1024**2


class Notes(IdentityProvider):
    def check(self, template):
        pass

    def seed(self, requests):
        for request in requests:
            yield Outcome(key=request.labels.clone, value=Seed(cmdline="a=b"))


class NotesPlugin:
    def __init__(self):
        self.driver = Notes()

    @hookimpl
    def vmcloner_identity_provider(self):
        return IdentityBackend(
            api=1, name="notes", description="", factory=lambda _context: self.driver
        )


@attrs.frozen
class Place:
    engine: Engine
    drivers: dict[str, object]

    def spoil(self, call, wrong):
        """Have a call's outcomes go through a function; returns what mends it again."""
        owner, *inner, method = call.split(".")
        driver = self.drivers[owner]
        for name in inner:
            driver = getattr(driver, name)
        right = getattr(driver, method)

        def spoiled(*args, **options):
            answer = right(*args, **options)
            if isinstance(answer, Outcome):
                return next(iter(wrong([answer])), None)
            return wrong(answer)

        setattr(driver, method, spoiled)
        return lambda: setattr(driver, method, right)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VMCLONER_CONFIG", raising=False)
    Path("vmcloner.toml").write_text(
        '[defaults]\nhypervisor = "reference"\nstorage = "reference"\n'
        f'[limits]\nboot_jobs = 256\n[hosts.local]\nstate = "{tmp_path}/state"\n'
    )
    Path("templates").mkdir()
    Path("templates/t.toml").write_text(TEMPLATE)
    Path("templates/image.raw").write_bytes(bytes(MIB))
    plugins = [StoragePlugin(), HypervisorPlugin(), BootPlugin(at_start=True), NotesPlugin()]
    with Engine.open(plugins=plugins) as engine:
        engine.list()  # makes the drivers
        drivers = [plugin.driver for plugin in plugins]
        yield Place(engine, dict(zip(TITLES, drivers, strict=True)))


# --- ways to misbehave --------------------------------------------------------------------------


def lose(outcomes):
    yield from (outcome for outcome in outcomes if not outcome.key.startswith("web-1"))


def double(outcomes):
    for outcome in outcomes:
        yield outcome
        yield outcome


def contradict(outcomes):
    outcomes = list(outcomes)
    yield from outcomes
    yield Outcome(key=outcomes[0].key, error=VmclonerError("or not"))


def stray(outcomes):
    yield from outcomes
    yield Outcome(key="db-9")


def swap(outcomes):
    for outcome in outcomes:
        yield attrs.evolve(outcome, key=f"{outcome.key}9")


def endless(outcomes):
    yield from outcomes
    while True:
        yield Outcome(key="db-9")


def each(**changes):
    return lambda outcomes: (attrs.evolve(outcome, **changes) for outcome in outcomes)


def inside(outcomes):
    """Have a value whose first field is of no right type."""
    for outcome in outcomes:
        field = attrs.fields(type(outcome.value))[0].name
        value = attrs.evolve(outcome.value)
        object.__setattr__(value, field, {})
        yield attrs.evolve(outcome, value=value)


def bug(outcomes):
    yield from lose(outcomes)
    raise SystemExit(3)


WAYS = {
    "missing": (lose, "yielded no outcome"),
    "doubled": (double, "yielded a second outcome for "),
    "contradicted": (contradict, "yielded a second outcome for "),
    "unasked": (stray, "yielded an outcome unasked for db-9"),
    "wrong keys": (swap, "yielded an outcome unasked for "),
    "endless": (endless, "yielded an outcome unasked for db-9"),
    "no key": (each(key=3), "yielded an outcome whose key is a int, not a str"),
    "no outcome": (lambda _: iter(["web-1"]), "yielded a str, not an Outcome"),
    "wrong value": (each(value="web-1"), "gave a str"),
    "wrong value inside": (inside, " is a dict"),
    "wrong change": (each(changed="no"), "gave a str for changed, not a bool"),
    "wrong error": (each(error=ValueError("x")), "none of vmcloner's: ValueError: x"),
    "bug": (bug, "failed: SystemExit: 3"),
}
VALUES = {  # the calls whose outcomes have values with something inside
    "pool.clone",
    "pool.reset",
    "pool.grow",
    "pool.snapshots.create",
    "pool.snapshots.revert",
    "pool.import_image",
    "machines.define",
    "boot.resolve",
    "boot.resolve_start",
    "notes.seed",
}
SINGLE = {"pool.import_image", "pool.delete_origin"}  # calls that return one outcome
FOR_ONE = {"doubled", "contradicted", "unasked", "endless", "bug"}
"""Ways that only a call with many outcomes has."""

# --- calls --------------------------------------------------------------------------------------


def nothing(_engine):
    """Set nothing up."""


def stopped(engine):
    engine.create("web", "t", count=2)


def running(engine):
    engine.create("web", "t", count=2, start=True)


def paused(engine):
    running(engine)
    engine.pause("web")


def saved(engine):
    running(engine)
    engine.save("web")


def kept(engine):
    running(engine)
    engine.create_snapshot("web", name="a", memory=True)
    engine.stop("web")


def imported(engine):
    engine.import_template("t").unwrap()


CALLS = {
    "pool.clone": (nothing, stopped),
    "pool.reset": (stopped, lambda e: e.reset("web")),
    "pool.delete": (stopped, lambda e: e.delete("web")),
    "pool.grow": (stopped, lambda e: e.set("web", sizes=Sizes(disk=4 * MIB))),
    "pool.activate": (stopped, lambda e: e.start("web")),
    "pool.deactivate": (running, lambda e: e.stop("web")),
    "pool.snapshots.create": (stopped, lambda e: e.create_snapshot("web", name="a")),
    "pool.snapshots.revert": (kept, lambda e: e.revert_snapshot("web", name="a", force=True)),
    "pool.snapshots.delete": (kept, lambda e: e.delete_snapshot("web", name="a")),
    "pool.import_image": (nothing, imported),
    "pool.delete_origin": (imported, lambda e: e.delete_template("t")),
    "machines.define": (nothing, stopped),
    "machines.start": (stopped, lambda e: e.start("web")),
    "machines.shutdown": (running, lambda e: e.stop("web")),
    "machines.destroy": (running, lambda e: e.delete("web")),
    "machines.undefine": (stopped, lambda e: e.delete("web")),
    "machines.renew": (stopped, lambda e: e.reset("web")),
    "machines.sizes.resize": (stopped, lambda e: e.set("web", sizes=Sizes(memory=300 * MIB))),
    "machines.memory.pause": (running, lambda e: e.pause("web")),
    "machines.memory.save": (running, lambda e: e.save("web")),
    "machines.memory.discard": (saved, lambda e: e.stop("web", kill=True)),
    "machines.snapshots.quiesce": (running, lambda e: e.create_snapshot("web", name="a")),
    "machines.snapshots.release": (running, lambda e: e.create_snapshot("web", name="a")),
    "machines.snapshots.keep": (running, lambda e: e.create_snapshot("web", name="a")),
    "machines.snapshots.resume": (
        running,
        lambda e: e.create_snapshot("web", name="a", memory=True),
    ),
    "machines.snapshots.check": (kept, lambda e: e.revert_snapshot("web", name="a", force=True)),
    "machines.snapshots.put_back": (
        kept,
        lambda e: e.revert_snapshot("web", name="a", force=True),
    ),
    "boot.resolve": (nothing, stopped),
    "boot.resolve_start": (stopped, lambda e: e.start("web")),
    "notes.seed": (nothing, stopped),
}
CASES = [
    pytest.param(call, way, id=f"{call}-{way}")
    for call in CALLS
    for way in WAYS
    if (way != "wrong value inside" or call in VALUES)
    and not (call in SINGLE and way in FOR_ONE)
    and not (call in SINGLE and way == "missing")
]


@pytest.mark.parametrize(("call", "way"), CASES)
def test_a_call_that_breaks_its_contract(place, call, way):
    prepare, act = CALLS[call]
    wrong, what = WAYS[way]
    prepare(place.engine)
    before = {clone.name for clone in place.engine.list()}
    mend = place.spoil(call, wrong)
    with pytest.raises(VmclonerError) as caught:
        act(place.engine)
    failures = getattr(caught.value, "failures", [("", caught.value)])
    owner, _, method = call.partition(".")
    for _, error in failures:
        assert f"{method} of {TITLES[owner]} " in str(error), error
        assert what in str(error), error
    if isinstance(caught.value, PartialFailure):
        assert len(failures) == (1 if way in ("missing", "bug") else 2)
    left = before & {name for name, _ in failures}
    assert left <= {clone.name for clone in place.engine.list()}
    assert left <= place.engine._host.records.names()
    mend()
    act(place.engine)


def test_what_is_gone_is_not_forgotten(place):
    stopped(place.engine)
    del place.drivers["machines"].machines["web-1"]
    mend = place.spoil("machines.forget", double)
    with pytest.raises(PartialFailure) as caught:
        place.engine.delete("web-1")
    said = "forget of hypervisor 'reference' yielded a second outcome for web-1"
    assert said in str(caught.value.failures[0][1])
    assert "web-1" in place.engine._host.records.names()
    mend()
    assert place.engine.delete("web").ok


@pytest.mark.parametrize("call", ["pool.clone", "machines.define", "machines.start"])
def test_a_clone_that_has_gone_on_is_called_back(place, call):
    """The second outcome comes when the clone has been started, and is ready."""
    ready = threading.Event()

    class Observer:
        @hookimpl
        def vmcloner_clone_ready(self, clone):
            ready.set()

    place.engine.plugins.watch(Observer())

    def late(outcomes):
        for outcome in outcomes:
            yield outcome
            assert ready.wait(60)
            yield attrs.evolve(outcome, value=None, error=VmclonerError("or not"))

    place.spoil(call, late)
    with pytest.raises(PartialFailure) as caught:
        place.engine.create("web", "t", count=1, start=True)
    assert "yielded a second outcome for web-1" in str(caught.value.failures[0][1])


HANGING = {
    "pool.clone": nothing,
    "pool.activate": stopped,
    "machines.define": nothing,
    "machines.start": stopped,
    "boot.resolve_start": stopped,
    "notes.seed": nothing,
    "pool.deactivate": running,
    "machines.shutdown": running,
    "pool.delete": stopped,
    "machines.undefine": stopped,
}


@pytest.mark.parametrize("call", HANGING)
def test_what_hangs_is_named(place, call, monkeypatch):
    end = threading.Event()
    HANGING[call](place.engine)
    act = CALLS[call][1]

    def hangs(outcomes):
        end.wait(60)
        yield from outcomes

    for kind in (StorageStep, HypervisorStep):
        monkeypatch.setattr(kind, "patience", -59.0)  # and a shutdown's timeout
    place.spoil(call, hangs)
    owner, _, method = call.partition(".")
    try:
        with pytest.raises(PartialFailure) as caught:
            act(place.engine)
    finally:
        end.set()
    said = [str(error) for _, error in caught.value.failures]
    assert any(f"{method} of {TITLES[owner]} gave no sign of life" in text for text in said), said


QUESTIONS = {
    "boot.resolve": "resolve of boot provider 'reference'",
    "machines.check_domain": "check_domain of hypervisor 'reference'",
    "machines.resources": "resources of hypervisor 'reference'",
    "pool.capacity": "capacity of storage 'reference'",
    "pool.origins": "origins of storage 'reference'",
}


@pytest.mark.parametrize("call", QUESTIONS)
def test_a_question_that_hangs_is_named(place, call, monkeypatch):
    end = threading.Event()
    monkeypatch.setattr("vmcloner_core.outcomes.answers", lambda asks: answers(asks, 0.3))
    owner, method = call.split(".")
    monkeypatch.setattr(place.drivers[owner], method, lambda *_args: end.wait(60))
    try:
        with pytest.raises(VmclonerError) as caught:
            place.engine.create("web", "t")
    finally:
        end.set()
    assert f"{QUESTIONS[call]}: no answer within 300 ms" in str(caught.value)


NONSENSE = {
    "pool.capacity": (Capacity(total="1", free=None), "its plugin gave a Capacity whose total is"),
    "pool.origins": ((1,), "origins of storage 'reference': its plugin gave a int"),
    "machines.resources": (3, "resources of hypervisor 'reference': its plugin gave a int"),
}


@pytest.mark.parametrize("call", NONSENSE)
def test_nonsense_for_an_answer_is_named(place, call, monkeypatch):
    owner, method = call.split(".")
    answer, said = NONSENSE[call]
    monkeypatch.setattr(place.drivers[owner], method, lambda *_args: answer)
    with pytest.raises(VmclonerError) as caught:
        place.engine.create("web", "t")
    assert said in str(caught.value)


def test_a_console_that_can_not_be_read_fails_no_wait_that_needs_none(place, monkeypatch):
    def read(*_args):
        raise FileNotFoundError("/var/log/x")

    monkeypatch.setattr(place.drivers["machines"].consoles, "read", read)
    wait = Readiness.parse("running")
    assert place.engine.create("web", "t", start=True, wait=wait).ok
