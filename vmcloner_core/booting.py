"""Start clones, after asking those boot providers that are asked at each start."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from vmcloner_core import bootfiles
from vmcloner_core.drivers import BootProvider, BootRequest, HypervisorDriver
from vmcloner_core.errors import BackendError, InvalidRequest, VmclonerError
from vmcloner_core.hooks import BootBackend
from vmcloner_core.model import (
    MAX_CMDLINE,
    BootConfig,
    CloneSpec,
    DomainSpec,
    Outcome,
    Seed,
    State,
    Volume,
)
from vmcloner_core.outcomes import Backend, Untrusted, checked
from vmcloner_core.pipeline import Work
from vmcloner_core.records import Records
from vmcloner_core.trusted_files import read_file

STARTED_FROM = "boot.json"
"""File in a clone's folder that says what the clone was started from."""


def boot_request(
    spec: CloneSpec, driver: HypervisorDriver, volumes: tuple[Volume, ...]
) -> BootRequest:
    """Return the boot provider's request for a clone."""
    return BootRequest(
        labels=spec.labels,
        template=spec.template,
        hypervisor=driver.kind,
        uuid=spec.uuid,
        volumes=volumes,
        nics=spec.nics,
        values=spec.values,
    )


def domain_spec(
    spec: CloneSpec,
    boot: BootConfig,
    volumes: tuple[Volume, ...],
    seed: Seed = Seed(),  # noqa: B008 - a frozen value
) -> DomainSpec:
    """Return the specification of a clone's domain.

    :raises InvalidRequest: the seed has kernel arguments, but there is no kernel, or no room.
    """
    return DomainSpec(
        labels=spec.labels,
        uuid=spec.uuid,
        memory=spec.memory,
        vcpus=spec.vcpus,
        # Where the provider is asked at each start, they are added then.
        boot=boot if spec.labels.boot is not None else told(spec.name, boot, seed.cmdline),
        volumes=volumes,
        nics=spec.nics,
        options=spec.template.domain,
        seed=seed.image,
        values=spec.values,
    )


@attrs.frozen(kw_only=True)
class Preview:
    """What a clone would boot, or the error that it would get.

    :param provider: the boot provider that was asked.
    :param running: it is running: this is what it was started from, or its definition if that
        isn't known.
    """

    name: str
    provider: str
    boot: BootConfig | None = None
    error: VmclonerError | None = None
    running: bool = False


def told(name: str, boot: BootConfig, words: str) -> BootConfig:
    """Return what a clone boots, with ``words`` added to its kernel command line.

    :raises InvalidRequest: it has no kernel command line, there is no room, or the command line
        has a control character.
    """
    if not (boot.cmdline or "").isprintable():
        raise InvalidRequest(f"{name}: its kernel command line has a control character")
    if not words:
        return boot
    if boot.kernel is None and boot.bootloader is None and not boot.origins:
        raise InvalidRequest(f"{name}: its identity needs a kernel command line, but it has none")
    cmdline = f"{boot.cmdline or ''} {words}".strip()
    if (size := len(cmdline.encode())) > MAX_CMDLINE:
        raise InvalidRequest(f"{name}: kernel command line has {size} bytes, over {MAX_CMDLINE}")
    return attrs.evolve(boot, cmdline=cmdline)


@attrs.frozen(kw_only=True)
class Starter:
    """Starts clones, and stores what they are started from. Thread-safe.

    :param boots: returns the boot provider of a name, with its description.
    :param backend: returns the backend of a kind and name, for messages.
    :param folder: has a folder for each clone's files.
    :param records: hold the kernel arguments of clones' identities.
    """

    boots: Callable[[str], tuple[BootBackend, BootProvider]]
    backend: Callable[[str, str], Backend]
    folder: Path
    records: Records

    def start(self, driver: HypervisorDriver, works: Sequence[Work]) -> Iterator[Outcome[object]]:
        """Start clones of one hypervisor, except those with nothing to boot."""
        names = [work.name for work in works]
        boots: dict[str, BootConfig] = {}
        for outcome in self._resolved(driver, works):
            if outcome.error is not None:
                names.remove(outcome.key)
                yield self.forget(Outcome(key=outcome.key, error=outcome.error))
            else:
                boots[outcome.key] = outcome.unwrap()
        given = (names, boots) if boots else (names,)
        begin = functools.partial(driver.start, *given)
        backend = self.backend("hypervisor", driver.name).of("start")
        for started in checked(begin, names, backend):
            failed = started.error is not None and started.key in boots
            yield self.forget(started) if failed else started

    def forget(self, outcome: Outcome[object]) -> Outcome[object]:
        """Remove what a clone was started from; if that fails, so does the outcome."""
        try:
            bootfiles.clear(self.folder, outcome.key)
        except VmclonerError as error:
            return attrs.evolve(outcome, error=outcome.error or error)
        return outcome

    def ended_to_boot_anew(self, name: str) -> bool:
        """Tell whether a clone that has stopped was started so that a reboot stops it.

        If so, its provider must be asked again. False for one that vmcloner stopped.
        """
        record = self._record(name)
        return record is not None and record.on_reboot == "destroy"

    def preview(self, driver: HypervisorDriver, works: Sequence[Work]) -> Iterator[Preview]:
        """Yield what clones of one hypervisor would boot now; starts and stores nothing.

        For a running clone: what it was started from, or its definition, since its disk and its
        DHCP lease are in use. The disks of the others must be active.
        """
        states = driver.states()
        requests: list[BootRequest] = []
        for work in works:
            request = boot_request(work.plan.known(), driver, work.volumes)
            request = attrs.evolve(request, dry_run=True)
            if states.get(work.name, State.STOPPED) in (State.STOPPED, State.CRASHED):
                requests.append(request)
            else:
                yield self._running(driver, request)
        yield from self._previewed(driver, requests)

    def _running(self, driver: HypervisorDriver, request: BootRequest) -> Preview:
        name, provider = request.labels.clone, provider_of(request)
        preview = Preview(name=name, provider=provider, running=True)
        record = self._record(name)
        if record is not None:
            return attrs.evolve(preview, boot=record)
        try:
            asked = self.backend("boot", provider)
            boot = defined_boot(self.boots(provider), driver, request, asked)
            if boot.kernel is not None or boot.bootloader is not None:
                boot = told(name, boot, self._words(name))
        except VmclonerError as error:
            return attrs.evolve(preview, error=error)
        return attrs.evolve(preview, boot=boot)

    def _previewed(
        self, driver: HypervisorDriver, requests: Sequence[BootRequest]
    ) -> Iterator[Preview]:
        providers = {request.labels.clone: provider_of(request) for request in requests}
        for outcome in resolve(self, requests, driver, every=True):
            name = outcome.key
            try:
                boot = told(name, outcome.unwrap(), self._words(name))
            except VmclonerError as error:
                yield Preview(name=name, provider=providers[name], error=error)
            else:
                yield Preview(name=name, provider=providers[name], boot=boot)

    def _words(self, name: str) -> str:
        """Return what a clone's identity adds to its kernel's command line."""
        kept = self.records.find(name)
        return kept.seed.cmdline if kept is not None else ""

    def _record(self, name: str) -> BootConfig | None:
        """Return what a clone was started from, None if that isn't known."""
        try:
            said = json.loads(read_file(self.folder / name / STARTED_FROM, trusted=False))
            for key in ("kernel", "initrd", "bootloader"):
                said[key] = said[key] and Path(said[key])
            for key in ("devices", "bootloader_args", "origins"):
                said[key] = tuple(said[key])
            return BootConfig(**said)
        except (VmclonerError, ValueError, TypeError, KeyError, RecursionError):
            return None

    # --- asking -------------------------------------------------------------------------------

    def _resolved(
        self, driver: HypervisorDriver, works: Sequence[Work]
    ) -> Iterator[Outcome[BootConfig]]:
        """Yield what clones boot whose providers are asked at each start."""
        asked = [work for work in works if work.plan.labels.boot is not None]
        states = driver.states() if asked else {}
        requests: dict[str, BootRequest] = {}
        for work in asked:
            if states.get(work.name) not in (State.STOPPED, State.CRASHED):
                continue  # running or paused: it has booted, and its disks are in use
            try:
                request = boot_request(work.plan.known(), driver, work.volumes)
                folder = bootfiles.fresh(self.folder, work.name)
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
                continue
            requests[work.name] = attrs.evolve(request, folder=folder)
        for outcome in resolve(self, tuple(requests.values()), driver):
            try:
                yield Outcome(key=outcome.key, value=self._complete(outcome))
            except VmclonerError as error:
                yield Outcome(key=outcome.key, error=error)

    def _complete(self, outcome: Outcome[BootConfig]) -> BootConfig:
        """Store and return what a clone boots, with its identity's kernel arguments."""
        boot = told(outcome.key, outcome.unwrap(), self._words(outcome.key))
        file = self.folder / outcome.key / STARTED_FROM
        try:
            file.touch(mode=0o600)
            file.write_text(json.dumps(attrs.asdict(boot), default=str, indent=1))
        except OSError as error:
            raise BackendError(f"{outcome.key}: can't write {file}: {error.strerror}") from error
        return boot


def with_networks(
    backend: BootBackend, driver: HypervisorDriver, requests: Sequence[BootRequest]
) -> Sequence[BootRequest]:
    """Return requests with the host's networks, if the provider wants them."""
    if not backend.networks or driver.networks is None or not requests:
        return requests
    networks = driver.networks.inspect()
    return [attrs.evolve(request, networks=networks) for request in requests]


def defined_boot(
    boots: tuple[BootBackend, BootProvider],
    driver: HypervisorDriver,
    request: BootRequest,
    asked: Backend,
) -> BootConfig:
    """Return what a clone boots according to its definition.

    :param asked: the provider, for messages.
    """
    backend, provider = boots
    requests = with_networks(backend, driver, [request])
    (answer,) = each_answer(provider.resolve, requests, asked.of("resolve"))
    return answer.unwrap()


def provider_of(request: BootRequest) -> str:
    """Return the name of the boot provider in a clone's labels, else in its template."""
    return request.labels.boot or request.template.boot


def resolve(
    starter: Starter,
    requests: Sequence[BootRequest],
    driver: HypervisorDriver,
    *,
    every: bool = False,
) -> Iterator[Outcome[BootConfig]]:
    """Yield what clones boot at a start; a provider may hand over to another, once.

    :param starter: knows the providers.
    :param driver: the hypervisor that they run on.
    :param every: also resolve what boot loaders that the hypervisor runs itself would boot.
    """
    handed_over: dict[str, list[BootRequest]] = {}
    by_name = {request.labels.clone: request for request in requests}
    for provider in dict.fromkeys(map(provider_of, requests)):
        group = [request for request in requests if provider_of(request) == provider]
        for outcome in _asked(starter, provider, group, driver, every=every):
            to = outcome.value.handover if outcome.value is not None else None
            if to is None:
                yield outcome
            else:
                handed_over.setdefault(to, []).append(by_name[outcome.key])
    for provider, group in handed_over.items():
        for outcome in _asked(starter, provider, group, driver, every=every):
            if outcome.value is not None and outcome.value.handover is not None:
                error = BackendError(f"{outcome.key}: boot provider {provider!r} hands over again")
                yield Outcome(key=outcome.key, error=error)
            else:
                yield outcome


def _asked(
    starter: Starter,
    name: str,
    requests: Sequence[BootRequest],
    driver: HypervisorDriver,
    *,
    every: bool,
) -> Iterator[Outcome[BootConfig]]:
    """Ask one provider, by the method for the hypervisor's kind."""
    try:
        backend, provider = starter.boots(name)
        requests = with_networks(backend, driver, requests)
    except VmclonerError as error:
        yield from (Outcome(key=request.labels.clone, error=error) for request in requests)
        return
    for request in requests:
        if request.hypervisor not in backend.hypervisors:
            what = f"boot provider {name!r} doesn't boot on {request.hypervisor}"
            refusal = BackendError(f"{request.labels.clone}: {what}")
            yield Outcome(key=request.labels.clone, error=refusal)
    requests = [request for request in requests if request.hypervisor in backend.hypervisors]
    at_start = [request for request in requests if request.hypervisor in backend.at_start]
    asked = starter.backend("boot", name)
    at_a_start = functools.partial(
        each_answer, provider.resolve_start, backend=asked.of("resolve_start")
    )
    yield from at_a_start(at_start)
    others = [request for request in requests if request.hypervisor not in backend.at_start]
    by_name = {request.labels.clone: request for request in others}
    for outcome in each_answer(provider.resolve, others, asked.of("resolve")):
        if every and outcome.value is not None and outcome.value.bootloader is not None:
            yield from at_a_start([by_name[outcome.key]])
        else:
            yield outcome


def each_answer(
    ask: Callable[[Sequence[BootRequest]], Iterator[Outcome[BootConfig]]],
    requests: Sequence[BootRequest],
    backend: Backend,
) -> Iterator[Outcome[BootConfig]]:
    """Yield a provider's answers; if it fails, ask for each remaining clone separately.

    So one clone's disk or server never keeps the others from starting.
    """
    if not requests:
        return
    by_name = {request.labels.clone: request for request in requests}
    asking = functools.partial(ask, requests)
    found: dict[str, Outcome[BootConfig]] = {}
    try:
        for outcome in checked(asking, by_name, backend, BootConfig):
            found[outcome.key] = outcome
    except VmclonerError as error:
        if isinstance(error, Untrusted):
            found.clear()
        if len(requests) == 1 and not found:
            found = {name: Outcome(key=name, error=error) for name in by_name}
    yield from found.values()
    for name, request in by_name.items():
        if name not in found:
            yield from each_answer(ask, [request], backend)
