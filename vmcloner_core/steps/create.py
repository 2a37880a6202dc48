"""Create: make clones' volumes, then their domains."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import attrs

from vmcloner_core.booting import boot_request, domain_spec, each_answer, with_networks
from vmcloner_core.disks import disk_requests
from vmcloner_core.drivers import HypervisorDriver, IdentityRequest, StorageDriver
from vmcloner_core.errors import VmclonerError
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import BootConfig, CloneRequest, Domain, DomainSpec, Outcome, Seed
from vmcloner_core.outcomes import checked, settled
from vmcloner_core.pipeline import More, Work
from vmcloner_core.records import SYNCS, identity_request
from vmcloner_core.steps.action import Action
from vmcloner_core.steps.step import HypervisorStep, Run, StorageStep, made


class Create(Action):
    """Bring a fleet to its size; the planner works out the steps of each clone."""

    name = "create"
    past = "created"
    order = ("check", "renew", "clone", "define", "start", "wait")
    tells = ("define", "start", "wait")
    own_word = False


class CloneDisks(StorageStep):
    """Make clones' volumes."""

    name = "clone"
    past = "cloned"
    lane = "clone_lane"
    undo = ("remove",)

    def call(
        self, run: Run, driver: StorageDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        wanted = []
        for work in works:
            try:
                requests = self._new(run, driver, work)
                if 0 in work.plan.disks:  # what ran on an older one doesn't count
                    run.host.records.update(work.name, ran={})
                    self._begin(run, work)
                wanted.append((work, requests))
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
        backend = run.host.drivers.backend("storage", driver.name, "clone")
        yield from made(driver.clone, driver.clone_lane, wanted, run.tally, backend)

    @staticmethod
    def _begin(run: Run, work: Work) -> None:
        """Note whether a clone, which gets a new disk, is to be forked: before it has one."""
        warm = work.plan.labels.warm
        if warm is not None:
            run.host.warm.wait(work.name, warm)
        else:
            run.host.warm.end(work.name)

    @staticmethod
    def _new(run: Run, driver: StorageDriver, work: Work) -> Sequence[CloneRequest]:
        """Return the requests for a clone's disks."""
        spec, plan = work.plan.known(), work.plan
        template, size = spec.template, spec.disk_size
        origin = run.image(driver, work) if 0 in plan.disks else None
        own = disk_requests(template, plan.labels, origin, run.plan.mode, plan.disks, size)
        return [attrs.evolve(request, copying=run.plan.copying) for request in own]


class Define(HypervisorStep):
    """Define clones' domains, each with its record and its seed."""

    name = "define"
    past = "created"
    lane = "define_lane"
    undo = ("destroy", "undefine")

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        by_name = {work.name: work for work in works}
        boots: dict[str, BootConfig] = {}
        for booted in self._resolved(run.host, driver, works):
            if booted.error is not None:
                yield Outcome(key=booted.key, error=booted.error)
            else:
                boots[booted.key] = booted.unwrap()
        specs: list[DomainSpec] = []
        for seeded in self._seeded(run.host, [by_name[name] for name in boots]):
            work = by_name[seeded.key]
            try:
                seed, boot = seeded.unwrap(), boots[seeded.key]
                specs.append(domain_spec(work.plan.known(), boot, work.volumes, seed))
            except VmclonerError as error:
                yield Outcome(key=seeded.key, error=error)
        backend = run.host.drivers.backend("hypervisor", driver.name, "define")
        names = [spec.name for spec in specs]
        yield from checked(lambda: driver.define(specs), names, backend, Domain)

    @staticmethod
    def _resolved(
        host: LocalHost, driver: HypervisorDriver, works: Sequence[Work]
    ) -> Iterator[Outcome[BootConfig]]:
        """Ask boot providers what the clones boot by their definitions."""
        providers: dict[str, list[Work]] = {}
        for work in works:
            providers.setdefault(work.plan.known().template.boot, []).append(work)
        for name, group in providers.items():
            requests = [boot_request(w.plan.known(), driver, w.volumes) for w in group]
            backend, provider = host.drivers.boot(name)
            whole = with_networks(backend, driver, requests)
            asked = host.drivers.backend("boot", name, "resolve")
            yield from each_answer(provider.resolve, whole, asked)

    @staticmethod
    def _seeded(host: LocalHost, works: Sequence[Work]) -> Iterator[Outcome[Seed]]:
        """Write clones' records before anything is defined, and make their seeds."""
        requests: dict[str, dict[str, IdentityRequest]] = {}
        specs = {work.name: work.plan.known() for work in works}
        for kept in host.records.keep_all(tuple(specs.values())):
            spec = specs[kept.key]
            try:
                kept.unwrap()
                if spec.identity is None:
                    yield Outcome(key=kept.key, value=Seed())
                    continue
                request = identity_request(spec, host.records.home(kept.key))
                provider = spec.template.identity.provider
                requests.setdefault(provider, {})[kept.key] = request
            except VmclonerError as error:
                yield Outcome(key=kept.key, error=error)
        with ThreadPoolExecutor(SYNCS) as pool:
            for chosen, asked in requests.items():
                identifier = host.drivers.identity(chosen)[1]
                seeding = functools.partial(identifier.seed, list(asked.values()))
                backend = host.drivers.backend("identity", chosen, "seed")
                seeded = settled(seeding, asked, backend, Seed)
                yield from pool.map(functools.partial(Define._noted, host), seeded)

    @staticmethod
    def _noted(host: LocalHost, seeded: Outcome[Seed]) -> Outcome[Seed]:
        """Note a clone's seed, once it is on the disk, in its record.

        One that can't be noted is that clone's failure.
        """
        try:
            if seeded.value is not None:
                host.records.note_seed(seeded.key, seeded.value)
        except VmclonerError as error:
            return Outcome(key=seeded.key, error=error)
        return seeded
