"""Conformance suite for hypervisor backends: the contract of ``HypervisorDriver`` as tests.

Subclass it in a test module of yours, with two fixtures::

    from vmcloner_core.testing.hypervisor import HypervisorConformance
    from vmcloner_core.testing.samples import make_context

    class TestMine(HypervisorConformance):
        @pytest.fixture
        def driver(self, tmp_path):
            driver = MyDriver(make_context(tmp_path), MySettings())
            yield driver
            driver.close()

        @pytest.fixture
        def make_spec(self, tmp_path):
            def make(labels):      # a DomainSpec that the driver can start, with one NIC
                return DomainSpec(labels=labels, ...)
            return make

Every test works on a fleet (or a network) of its own, which is removed afterwards, so it can run on
a real host. Tests of an optional interface are skipped, with the reason, where the driver has none.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import attrs
import pytest

from vmcloner_core.drivers import (
    ConsoleInterface,
    HypervisorDriver,
    MemoryInterface,
    NetworkInterface,
)
from vmcloner_core.errors import Conflict, NotFound, VmclonerError, WrongState
from vmcloner_core.model import (
    Domain,
    DomainInventory,
    DomainSpec,
    Labels,
    NetworkRequest,
    Outcome,
    State,
    Status,
)
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.snapshots import MachineConformance
from vmcloner_core.testing.suite import Suite, by_key
from vmcloner_core.testing.warm import WarmConformance

T = TypeVar("T")
MakeSpec = Callable[[Labels], DomainSpec]


class HypervisorConformance(MachineConformance, WarmConformance, Suite):
    """What every hypervisor driver must do. Needs the fixtures ``driver`` and ``make_spec``."""

    contract = HypervisorDriver

    @pytest.fixture
    def fleet(self, driver: HypervisorDriver) -> Iterator[str]:
        """Name a fleet that is removed after the test."""
        name = f"conformance{secrets.token_hex(4)}"
        yield name
        left = [d.name for d in driver.inspect().domains if d.labels.fleet.startswith(name)]
        _all_ok(driver.destroy(left))
        _all_ok(driver.undefine(left))

    @pytest.fixture
    def specs(self, fleet: str, make_spec: MakeSpec) -> tuple[DomainSpec, ...]:
        """Return the specifications of three clones."""
        return tuple(make_spec(make_labels(fleet, index)) for index in (1, 2, 3))

    # --- define -------------------------------------------------------------------------------

    def test_defined_domains_are_found_with_all_they_have(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """What ``define`` returns is what ``inspect`` finds: labels, UUID, addresses, memory."""
        made = by_key(driver.define(specs))
        assert set(made) == {spec.name for spec in specs}
        assert all(outcome.ok and outcome.changed for outcome in made.values())
        found = {domain.name: domain for domain in driver.inspect().domains}
        for spec in specs:
            domain = found[spec.name]
            assert domain == made[spec.name].unwrap()
            assert domain.labels == spec.labels
            assert domain.uuid == spec.uuid
            assert domain.state is State.STOPPED
            assert domain.memory == spec.memory
            assert domain.macs == tuple(nic.mac for nic in spec.nics)
            assert driver.states()[spec.name] is State.STOPPED

    def test_our_domains_are_not_foreign(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """Names and MAC addresses of our own domains are not listed as foreign."""
        _all_ok(driver.define(specs))
        inventory = driver.inspect()
        assert not inventory.foreign_names & {spec.name for spec in specs}
        assert not inventory.foreign_macs & {nic.mac for spec in specs for nic in spec.nics}

    def test_define_twice_changes_nothing(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...], make_spec: MakeSpec
    ) -> None:
        """Defining the same clone again, even in a later run, changes nothing."""
        _all_ok(driver.define(specs))
        before = driver.inspect()
        later = [
            make_spec(make_labels(spec.labels.fleet, spec.labels.index, run="r2")) for spec in specs
        ]
        for outcome in driver.define(later):
            assert outcome.ok
            assert not outcome.changed
            assert outcome.unwrap().labels.run == make_labels().run
        assert _ours(before, specs) == _ours(driver.inspect(), specs)

    def test_another_templates_clone_is_a_conflict(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...], make_spec: MakeSpec
    ) -> None:
        """The name of another template's clone is refused; the rest of the batch is done."""
        _all_ok(driver.define(specs[:1]))
        other = make_spec(make_labels(specs[0].labels.fleet, 1, template="other"))
        outcomes = by_key(driver.define([other, specs[1]]))
        assert isinstance(outcomes[other.name].error, Conflict)
        assert outcomes[specs[1].name].ok
        kept = next(d for d in driver.inspect().domains if d.name == other.name)
        assert kept.labels == specs[0].labels

    def test_longest_name(self, driver: HypervisorDriver, fleet: str, make_spec: MakeSpec) -> None:
        """A name of 63 characters, the maximum of a DNS label, is not truncated."""
        spec = make_spec(make_labels(fleet.ljust(56, "x"), 999_999))
        assert len(spec.name) == 63
        _all_ok(driver.define([spec]))
        assert spec.name in driver.states()

    def test_hostile_labels_survive(
        self, driver: HypervisorDriver, fleet: str, make_spec: MakeSpec
    ) -> None:
        """Labels are read back unchanged, whatever they contain."""
        text = "<a href='x'>&amp;\"]]>%41\n\t\r\x01 ü\U0001f40d {{ 7*7 }}"
        labels = make_labels(fleet, 1, owner=text, run=text)
        _all_ok(driver.define([make_spec(labels)]))
        assert _labels_found(driver, labels.clone) == labels

    def test_batches_at_once(
        self, driver: HypervisorDriver, fleet: str, make_spec: MakeSpec
    ) -> None:
        """Concurrent calls, as many as the lane allows, lose and duplicate nothing."""
        specs = [make_spec(make_labels(fleet, index)) for index in range(1, 17)]
        with ThreadPoolExecutor(max(2, driver.define_lane.concurrency)) as pool:
            batches = [specs[i : i + 4] for i in range(0, 16, 4)]
            outcomes = [o for batch in pool.map(_run(driver.define), batches) for o in batch]
        assert sorted(o.key for o in outcomes) == sorted(spec.name for spec in specs)
        assert all(o.ok for o in outcomes)
        assert {spec.name for spec in specs} <= set(driver.states())

    def test_render_is_what_define_uses(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """Rendering names the clone, gives the same text each time, and defines nothing."""
        text = driver.render(specs[0])
        assert specs[0].name in text
        assert text == driver.render(specs[0])
        assert specs[0].name not in driver.states()

    # --- start and stop -----------------------------------------------------------------------

    def test_start_and_destroy(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """A second start, or a second destroy, changes nothing."""
        _all_ok(driver.define(specs))
        name = specs[0].name
        assert [o.changed for o in _all_ok(driver.start([name]))] == [True]
        assert driver.states()[name] is State.RUNNING
        assert [o.changed for o in _all_ok(driver.start([name]))] == [False]
        assert driver.states()[specs[1].name] is State.STOPPED
        assert [o.changed for o in _all_ok(driver.destroy([name]))] == [True]
        assert driver.states()[name] is State.STOPPED
        assert [o.changed for o in _all_ok(driver.destroy([name]))] == [False]

    def test_destroy_of_what_is_not_there(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """A domain that is gone is a success; only those that are named are stopped."""
        _all_ok(driver.define(specs[:2]))
        ran, stopped, gone = (spec.name for spec in specs)
        _all_ok(driver.start([ran]))
        outcomes = by_key(_all_ok(driver.destroy([stopped, gone])))
        assert {key: o.changed for key, o in outcomes.items()} == {stopped: False, gone: False}
        assert driver.states()[ran] is State.RUNNING

    def test_start_of_what_is_not_defined(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """A domain that isn't defined is NotFound; the others are started."""
        _all_ok(driver.define(specs[:1]))
        outcomes = by_key(driver.start([specs[1].name, specs[0].name]))
        assert isinstance(outcomes[specs[1].name].error, NotFound)
        assert outcomes[specs[0].name].ok
        assert driver.states()[specs[0].name] is State.RUNNING

    def test_shutdown_ends_what_runs(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """A shutdown stops domains by its deadline; stopped or missing ones are a success."""
        _all_ok(driver.define(specs[:2]))
        _all_ok(driver.start([specs[0].name]))
        names = [spec.name for spec in specs]
        outcomes = by_key(_all_ok(driver.shutdown(names, timeout=2)))
        assert {key: o.changed for key, o in outcomes.items()} == {
            names[0]: True,
            names[1]: False,
            names[2]: False,
        }
        assert driver.states()[names[0]] is State.STOPPED

    def test_start_after_stop(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """A domain can be started again."""
        name = specs[0].name
        _all_ok(driver.define(specs[:1]))
        for _ in range(2):
            _all_ok(driver.start([name]))
            assert driver.states()[name] is State.RUNNING
            _all_ok(driver.destroy([name]))

    def test_a_boot_for_one_start(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """A boot for one start changes neither the definition nor the labels."""
        if not driver.one_shot:
            pytest.skip("the driver declares that it boots only by the definition")
        _all_ok(driver.define(specs[:2]))
        before = _ours(driver.inspect(), specs)
        name, other = specs[0].name, specs[1].name
        boots = {name: attrs.evolve(specs[0].boot, on_reboot="destroy")}
        assert [o.changed for o in _all_ok(driver.start([name, other], boots))] == [True, True]
        assert driver.states()[name] is State.RUNNING
        assert [o.changed for o in _all_ok(driver.start([name], boots))] == [False]
        _all_ok(driver.destroy([name, other]))
        assert _ours(driver.inspect(), specs) == before
        _all_ok(driver.start([name]))
        assert driver.states()[name] is State.RUNNING

    # --- undefine -----------------------------------------------------------------------------

    def test_undefine(self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]) -> None:
        """Undefined domains are gone; a missing one is a success."""
        _all_ok(driver.define(specs))
        names = [spec.name for spec in specs]
        assert all(o.changed for o in _all_ok(driver.undefine(names)))
        assert not set(names) & set(driver.states())
        assert not any(o.changed for o in _all_ok(driver.undefine(names)))

    def test_undefine_of_a_running_domain(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """A running domain is refused and keeps running; the others are undefined."""
        _all_ok(driver.define(specs))
        name = specs[0].name
        _all_ok(driver.start([name]))
        outcomes = by_key(driver.undefine([name, specs[1].name]))
        assert isinstance(outcomes[name].error, WrongState)
        assert outcomes[specs[1].name].ok
        states = driver.states()
        assert states[name] is State.RUNNING
        assert specs[1].name not in states

    # --- disks that are replaced --------------------------------------------------------------

    def test_renewed_domains_have_no_memory_of_their_old_disks(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """Saved memory is gone; a domain without any, or that is gone, is a success."""
        _all_ok(driver.define(specs[:2]))
        names = [spec.name for spec in specs]
        if driver.memory is not None:
            _all_ok(driver.start(names[:1]))
            _all_ok(driver.memory.save(names[:1]))
        before = _ours(driver.inspect(), specs[1:2])
        _all_ok(driver.renew({name: {} for name in names}))
        assert driver.states()[names[0]] is State.STOPPED
        assert _ours(driver.inspect(), specs[1:2]) == before
        assert not any(o.changed for o in _all_ok(driver.renew({name: {} for name in names})))

    def test_a_running_domain_is_not_renewed(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """It is refused where anything is kept of a domain, and runs on."""
        if type(driver).renew is HypervisorDriver.renew:
            pytest.skip("the driver declares that it keeps nothing of old disks")
        name = specs[0].name
        _all_ok(driver.define(specs[:1]))
        _all_ok(driver.start([name]))
        [outcome] = driver.renew({name: {}})
        assert isinstance(outcome.error, WrongState)
        assert driver.states()[name] is State.RUNNING

    def test_uses_name_the_disks_of_domains(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """Each domain is listed once, with its UUID and its disks' files."""
        _all_ok(driver.define(specs))
        uses = [use for use in driver.uses([specs[0].name]) if use.uuid == specs[0].uuid]
        assert [use.name for use in uses] == [specs[0].name]
        wanted = {volume.path for volume in specs[0].volumes}
        assert {file.path for file in uses[0].disks} == wanted
        assert {file.path for file in uses[0].files} >= wanted
        assert not uses[0].job

    # --- optional interfaces ------------------------------------------------------------------

    @pytest.fixture
    def consoles(self, driver: HypervisorDriver) -> ConsoleInterface:
        """Return the driver's consoles."""
        return _interface(driver.consoles, "consoles")

    def test_console_of_a_domain_that_never_ran(
        self,
        driver: HypervisorDriver,
        consoles: ConsoleInterface,
        specs: tuple[DomainSpec, ...],
    ) -> None:
        """There is no log: nothing is read at any offset."""
        _all_ok(driver.define(specs[:1]))
        assert consoles.read(specs[0].name, 0, 100) == (b"", 0)
        assert consoles.read(specs[0].name, 50, 100) == (b"", 0)

    def test_each_domain_has_a_console_log_of_its_own(
        self, consoles: ConsoleInterface, specs: tuple[DomainSpec, ...]
    ) -> None:
        """Each domain has one log file, the same each time."""
        logs = [consoles.log(spec.name) for spec in specs]
        assert len(set(logs)) == len(specs)
        assert logs == [consoles.log(spec.name) for spec in specs]

    def test_attach_needs_a_running_domain(
        self,
        driver: HypervisorDriver,
        consoles: ConsoleInterface,
        specs: tuple[DomainSpec, ...],
    ) -> None:
        """A domain that doesn't exist is NotFound; one that isn't running is WrongState."""
        with pytest.raises(NotFound):
            consoles.attach(specs[0].name, 0, 1)
        _all_ok(driver.define(specs[:1]))
        with pytest.raises(WrongState):
            consoles.attach(specs[0].name, 0, 1)

    @pytest.fixture
    def networks(self, driver: HypervisorDriver) -> NetworkInterface:
        """Return the driver's networks."""
        return _interface(driver.networks, "networks")

    @pytest.fixture
    def network(self, networks: NetworkInterface) -> Iterator[NetworkRequest]:
        """Request a network that is removed after the test."""
        request = NetworkRequest(name=f"vmc{secrets.token_hex(4)}", count=10)
        yield request
        networks.remove(request)

    def test_a_network_is_prepared_once_and_removed_once(
        self, networks: NetworkInterface, network: NetworkRequest
    ) -> None:
        """A dry run returns the steps and changes nothing; a second call has no steps."""
        dry = attrs.evolve(network, dry_run=True)
        planned = networks.prepare(dry)
        assert planned.steps
        assert network.name not in _names(networks)
        made = networks.prepare(network)
        assert made.steps == planned.steps
        assert made.network.ours
        assert made.network.active
        assert (made.network.addresses or 0) >= network.count
        assert network.name in _names(networks)
        assert not networks.prepare(network).steps
        planned = networks.remove(dry)
        assert planned.steps
        assert network.name in _names(networks)
        assert networks.remove(network).steps == planned.steps
        assert network.name not in _names(networks)
        assert not networks.remove(network).steps

    def test_agents_of_domains_that_do_not_run(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """No agent has reported, for any list of names."""
        agents = _interface(driver.agents, "guest agents")
        _all_ok(driver.define(specs[:1]))
        assert agents.reported([spec.name for spec in specs]) == frozenset()
        assert agents.reported([]) == frozenset()
        with pytest.raises(VmclonerError, match=specs[0].name):
            agents.run(specs[0].name, b"exit 0\n", timeout=1.0)

    @pytest.fixture
    def memory(self, driver: HypervisorDriver) -> MemoryInterface:
        """Return the driver's interface for memory."""
        return _interface(driver.memory, "memory states")

    def test_paused_domains_continue(
        self, driver: HypervisorDriver, memory: MemoryInterface, specs: tuple[DomainSpec, ...]
    ) -> None:
        """A second pause changes nothing; a domain that doesn't run can't be paused."""
        _all_ok(driver.define(specs[:2]))
        name, stopped = specs[0].name, specs[1].name
        _all_ok(driver.start([name]))
        outcomes = by_key(memory.pause([name, stopped]))
        assert outcomes[name].changed
        assert isinstance(outcomes[stopped].error, WrongState)
        assert driver.states()[name] is State.PAUSED
        assert [o.changed for o in _all_ok(memory.pause([name]))] == [False]
        assert [o.changed for o in _all_ok(driver.start([name]))] == [True]
        assert driver.states()[name] is State.RUNNING

    def test_saved_domains_continue(
        self, driver: HypervisorDriver, memory: MemoryInterface, specs: tuple[DomainSpec, ...]
    ) -> None:
        """A saved domain isn't stopped; it is started, even if it was paused before."""
        _all_ok(driver.define(specs[:3]))
        names = [spec.name for spec in specs[:3]]
        _all_ok(driver.start(names[:2]))
        _all_ok(memory.pause(names[1:2]))
        outcomes = by_key(memory.save(names))
        assert [outcomes[name].ok for name in names] == [True, True, False]
        assert isinstance(outcomes[names[2]].error, WrongState)
        assert [driver.states()[name] for name in names[:2]] == [State.SAVED] * 2
        assert not any(o.changed for o in _all_ok(memory.save(names[:2])))
        _all_ok(driver.start(names[:2]))
        assert [driver.states()[name] for name in names[:2]] == [State.RUNNING] * 2

    def test_discarded_memory(
        self, driver: HypervisorDriver, memory: MemoryInterface, specs: tuple[DomainSpec, ...]
    ) -> None:
        """A domain is stopped then; one without saved memory is unchanged; deletes take both."""
        _all_ok(driver.define(specs[:2]))
        names = [spec.name for spec in specs[:2]]
        _all_ok(driver.start(names))
        _all_ok(memory.save(names))
        assert [o.changed for o in _all_ok(memory.discard(names[:1]))] == [True]
        assert driver.states()[names[0]] is State.STOPPED
        assert [o.changed for o in _all_ok(memory.discard([names[0], "gone-1"]))] == [False] * 2
        _all_ok(driver.undefine(names))
        assert not set(names) & set(driver.states())

    def test_changed_sizes(self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]) -> None:
        """A domain that is off has them; one that doesn't exist is NotFound."""
        sizes = _interface(driver.sizes, "sizes")
        _all_ok(driver.define(specs[:2]))
        name, other, gone = (spec.name for spec in specs[:3])
        memory = 2 * specs[0].memory
        for changed in (True, False):
            outcomes = by_key(sizes.resize([name, gone], memory, 2))
            assert (outcomes[name].value, outcomes[name].changed) == (True, changed)
            assert isinstance(outcomes[gone].error, NotFound)
        found = {domain.name: domain.memory for domain in driver.inspect().domains}
        assert (found[name], found[other]) == (memory, specs[1].memory)
        _all_ok(sizes.resize([name], specs[0].memory // 2, None))
        found = {domain.name: domain.memory for domain in driver.inspect().domains}
        assert found[name] == specs[0].memory // 2

    def test_statistics_are_of_running_domains(
        self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]
    ) -> None:
        """Only those asked for that run have any; memory is in bytes, and counters don't fall."""
        statistics = _interface(driver.statistics, "statistics")
        _all_ok(driver.define(specs[:3]))
        names = [spec.name for spec in specs[:3]]
        assert statistics.read(names) == {}
        _all_ok(driver.start(names[:2]))
        assert statistics.read([]) == {}
        before = statistics.read([names[0], names[2], "gone-1"])
        assert set(before) == {names[0]}
        now = statistics.read(names)
        assert set(now) == set(names[:2])
        assert now[names[0]].at > before[names[0]].at
        for key in ("cpu", "disk_read", "disk_written", "net_received", "net_sent"):
            old, new = getattr(before[names[0]], key), getattr(now[names[0]], key)
            assert old is None or new is None or 0 <= old <= new
        assert now[names[0]].cpu is not None
        memory = now[names[0]].memory
        assert memory is not None
        assert 0 < memory <= specs[0].memory
        shares = statistics.shares([names[0], names[2], "gone-1"])
        assert set(shares) <= {names[0]}
        assert all(share > 0 for share in shares.values())

    def test_native_format(self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]) -> None:
        """The native text names the clone, is the same each time, and defines nothing."""
        native = _interface(driver.native, "native format")
        text = native.render(specs[0])
        assert specs[0].name in text
        assert text == native.render(specs[0])
        assert specs[0].name not in driver.states()

    # --- the rest -----------------------------------------------------------------------------

    def test_empty_batches(self, driver: HypervisorDriver, specs: tuple[DomainSpec, ...]) -> None:
        """Empty batches yield nothing, and do nothing to those that are there."""
        _all_ok(driver.define(specs[:2]))
        _all_ok(driver.start([specs[0].name]))
        assert not list(driver.define([]))
        assert not list(driver.start([]))
        assert not list(driver.shutdown([], timeout=1))
        assert not list(driver.destroy([]))
        assert not list(driver.undefine([]))
        assert not list(driver.renew({}))
        states = driver.states()
        assert [states[spec.name] for spec in specs[:2]] == [State.RUNNING, State.STOPPED]

    def test_resources(self, driver: HypervisorDriver) -> None:
        """Memory is in bytes, not kibibytes or megabytes."""
        found = driver.resources()
        assert found.memory_total > 64 * 1024**2
        assert 0 <= found.memory_free <= found.memory_total
        assert found.cpus >= 1

    def test_probe(self, driver: HypervisorDriver) -> None:
        """Checks have the backend's name; those not OK have a reason; none fails here."""
        checks = list(driver.probe())
        assert checks
        for check in checks:
            assert check.backend == driver.name
            assert check.status is not Status.FAILED, f"{check.name}: {check.detail}"
            assert check.status is Status.OK or check.detail


def _interface(found: T | None, what: str) -> T:
    if found is None:
        pytest.skip(f"the driver declares that it has no {what}")
    return found


def _names(networks: NetworkInterface) -> set[str]:
    return {network.name for network in networks.inspect() or ()}


def _labels_found(driver: HypervisorDriver, name: str) -> Labels:
    return next(d.labels for d in driver.inspect().domains if d.name == name)


def _ours(inventory: DomainInventory, specs: tuple[DomainSpec, ...]) -> set[Domain]:
    names = {spec.name for spec in specs}
    return {domain for domain in inventory.domains if domain.name in names}


def _all_ok(outcomes: Iterator[Outcome[T]]) -> list[Outcome[T]]:
    found = list(outcomes)
    for outcome in found:
        assert outcome.ok, f"{outcome.key}: {outcome.error}"
    return found


def _run(
    method: Callable[[Sequence[DomainSpec]], Iterator[Outcome[Domain]]],
) -> Callable[[Sequence[DomainSpec]], list[Outcome[Domain]]]:
    return lambda batch: list(method(batch))
