"""Templates with what belongs to them on a host: images in pools, boot providers, checks."""

from __future__ import annotations

import contextlib
import getpass
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core import images
from vmcloner_core.booting import Preview, Starter, boot_request
from vmcloner_core.catalog import Catalog, write_built
from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import HypervisorDriver, ImageBuilder, ImageFile, StorageDriver
from vmcloner_core.errors import InvalidRequest, NotFound, VmclonerError, WrongState
from vmcloner_core.identities import Identities, authorized_keys, resolve
from vmcloner_core.model import (
    AS_IT_COMES,
    Access,
    Check,
    Clone,
    Copying,
    DomainSpec,
    Labels,
    Nic,
    Origin,
    Outcome,
    Seed,
    State,
    Status,
    Template,
    Volume,
    clone_mac,
    clone_uuid,
)
from vmcloner_core.pipeline import Work
from vmcloner_core.plan import ClonePlan, ProgressEvent, Readiness, Step, StepEvent, StepStatus
from vmcloner_core.planner import check_wait, filled, own_values
from vmcloner_core.plugins import PluginHost
from vmcloner_core.settings import Settings
from vmcloner_core.stages import domain_spec, identity_request
from vmcloner_core.values_file import sizes


class _NotYet(VmclonerError):
    """Something can't be checked before something else is made."""


def check_image(template: Template) -> None:
    """Check that a template's image is there, where that is a file's to be.

    :raises NotFound: it isn't. :raises InvalidRequest: nobody can tell.
    """
    path = template.image.path
    try:
        if path is not None:
            path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            f"image {path} of template {template.name} doesn't exist",
            hint=f"vmcloner template import {template.name} --image FILE_OR_URL, "
            f"or see {template.origin_file}",
        ) from error
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error


class Library:
    """The templates of one host. Thread-safe; callers see to it that one import runs at a time."""

    def __init__(self, settings: Settings, plugins: PluginHost, backends: DriverRegistry) -> None:
        self._settings = settings
        self._plugins = plugins
        self._backends = backends
        self._host = backends.host
        self.catalog = Catalog(self._host.templates)

    def origins(self, template: str | None = None) -> tuple[Origin, ...]:
        """Return the images that the host's pools hold, of all templates or of one."""
        return tuple(
            origin
            for name in self._backends.names("storage")
            for origin in self._backends.storage(name).origins()
            if template in (None, origin.template)
        )

    def check_pairing(self, template: Template, hypervisor: HypervisorDriver) -> None:
        """Check that template, boot provider and hypervisor go together."""
        where = f"template {template.name!r}"
        if hypervisor.kind not in template.hypervisors:
            raise InvalidRequest(
                f"{where} doesn't run on {hypervisor.kind}",
                hint=f"it runs on {', '.join(template.hypervisors)}",
            )
        backend, provider = self._backends.boot(template.boot)
        if hypervisor.kind not in backend.hypervisors:
            raise InvalidRequest(
                f"{where}: boot provider {template.boot!r} doesn't boot on {hypervisor.kind}",
                hint=f"it boots on {', '.join(sorted(backend.hypervisors))}",
            )
        if hypervisor.kind in backend.at_start and not hypervisor.one_shot:
            raise InvalidRequest(
                f"{where}: boot provider {template.boot!r} is asked at each start, and "
                f"{hypervisor.name} boots only what a definition says"
            )
        provider.check(template)
        hypervisor.check(template)
        identity, identifier = self._backends.identity(template.identity.provider)
        if identity.cmdline and not backend.cmdline:
            raise InvalidRequest(
                f"{where}: identity provider {identity.name!r} works by the kernel's command line, "
                f"which boot provider {template.boot!r} doesn't give",
                hint="use identity provider cloud-init, or boot = 'kernel'",
            )
        identifier.check(template)

    def check_seed(self, plan: ClonePlan, template: Template) -> None:
        """Check what the identity of a clone would be made of.

        :raises InvalidRequest: it can't be.
        """
        identifier = self._backends.identity(template.identity.provider)[1]
        home = Identities(self._host.identities).imagined(plan.name)
        identifier.check_seed(identity_request(plan, template, home))

    def boot_at_start(self, template: Template, hypervisor: HypervisorDriver) -> str | None:
        """Return the template's boot provider where it is asked at each start, else None."""
        backend, _ = self._backends.boot(template.boot)
        return template.boot if hypervisor.kind in backend.at_start else None

    def reach(self, clone: Clone) -> Outcome[Access]:
        """Return how a clone is reached as it is now, or why it can't be."""
        try:
            if clone.state is not State.RUNNING:
                raise WrongState(
                    f"{clone.name} is {clone.state.value}",
                    hint=f"vmcloner start {clone.name} --wait",
                )
            if clone.ip is None:
                if clone.domain is None or any(clone.domain.networks):
                    said, hint = "no address is known yet", f"vmcloner wait {clone.name} --for ip"
                else:
                    said = "no address is known"
                    hint = 'cards of kind = "network" or "bridge" get one that is'
                raise WrongState(f"{clone.name}: {said}", hint=hint)
            return Outcome(key=clone.name, value=self.access(clone.labels, clone.ip))
        except VmclonerError as error:
            return Outcome(key=clone.name, error=error)

    def access(self, labels: Labels, address: str) -> Access:
        """Return how a clone is reached at an address.

        :raises WrongState: no host keys are kept for it, so nothing would prove that it is it.
        :raises NotFound: its template is gone, or the key file that this names.
        """
        template = self.catalog.template(labels.template)
        known_hosts = self._host.identities / labels.clone / "known_hosts"
        if not known_hosts.exists():
            raise WrongState(
                f"{labels.clone} has no host keys of its own here",
                hint=f"give template {labels.template} an identity, and make the clone anew",
            )
        key = template.ssh.key
        if key is not None and not key.is_file():
            raise NotFound(
                f"template {template.name}: ssh.key: {key} doesn't exist",
                hint="a private key file; without ssh.key your own keys and agent are used",
            )
        return Access(
            name=labels.clone,
            address=address,
            user=template.ssh.user,
            port=template.ssh.port,
            known_hosts=known_hosts,
            key=key,
        )

    def check(self, name: str) -> tuple[Check, ...]:
        """Check a template as far as that goes without making a clone of it."""
        checks: list[Check] = []

        def look_at(what: str, look: Callable[[], str]) -> None:
            try:
                checks.append(Check(backend=name, name=what, status=Status.OK, detail=look()))
            except VmclonerError as error:
                later = isinstance(error, _NotYet)
                checks.append(
                    Check(
                        backend=name,
                        name=what,
                        status=Status.WARNING if later else Status.FAILED,
                        detail=error.message,
                        fix=error.hint or "",
                    )
                )

        template = self.catalog.template(name)
        hypervisor_name = self._settings.defaults.hypervisor
        look_at("file", lambda: str(template.origin_file))
        look_at("image", lambda: self._image_state(template))
        look_at("boot", lambda: self._boot_state(template, hypervisor_name))
        look_at("domain", lambda: self._domain_state(template, hypervisor_name))
        look_at("identity", lambda: self._identity_state(template, hypervisor_name))
        look_at("ready", lambda: self._ready_state(template, hypervisor_name))
        return tuple(checks)

    def _image_state(self, template: Template) -> str:
        pools = [origin.pool for origin in self.origins(template.name)]
        if pools:
            return f"in pool {', '.join(pools)}"
        if template.image.builder is not None:
            self._builder(template)
            return f"will be made by the builder {template.image.builder!r}"
        check_image(template)
        return f"will be imported from {template.image.path or template.image.url}"

    def _boot_state(self, template: Template, hypervisor: str) -> str:
        self.check_pairing(template, self._backends.hypervisor(hypervisor))
        return f"{template.boot} on {hypervisor}"

    def _domain_state(self, template: Template, hypervisor: str) -> str:
        driver = self._backends.hypervisor(hypervisor)
        labels = self._sample(template, hypervisor).labels
        try:
            xml = driver.render(self.spec(labels, template, (), driver))
        except VmclonerError as error:
            if template.image.builder is None or template.folder.exists():
                raise
            raise _NotYet(f"can't be told before its image is made: {error.message}") from error
        return f"{len(xml.splitlines())} lines of domain XML"

    def _identity_state(self, template: Template, hypervisor: str) -> str:
        provider = template.identity.provider
        if not self._backends.identity(provider)[1].seeds:
            return provider
        plan = self._sample(template, hypervisor)
        keys = authorized_keys(template)
        assert plan.uuid is not None  # noqa: S101 - a sample has one
        who = resolve(template, plan.labels, plan.nics, plan.uuid, plan.values, keys)
        self.check_seed(attrs.evolve(plan, identity=who), template)
        return f"{provider}, {len(keys)} public keys may log in"

    def _ready_state(self, template: Template, hypervisor: str) -> str:
        plan = self._sample(template, hypervisor)
        wait = Readiness.parse(template.ready)
        check_wait(wait, template)
        return str(filled(wait, plan.labels, plan.nics, plan.values))

    def _sample(self, template: Template, hypervisor: str) -> ClonePlan:
        """Return the plan of a clone that there will never be."""
        labels = Labels(
            fleet="check",
            index=1,
            template=template.name,
            run="check",
            owner=owner(),
            created=now(),
            storage=self._settings.defaults.storage,
            hypervisor=hypervisor,
        )
        return self._plan(labels, template, self._backends.hypervisor(hypervisor), ())

    def spec(
        self,
        labels: Labels,
        template: Template,
        volumes: tuple[Volume, ...],
        driver: HypervisorDriver,
        macs: Sequence[str] = (),
    ) -> DomainSpec:
        """Return what a clone's domain would be defined by."""
        plan = self._plan(labels, template, driver, macs)
        request = boot_request(plan, template, driver, volumes)
        _, provider = self._backends.boot(template.boot)
        boot = next(provider.resolve([request])).unwrap()
        kept = Identities(self._host.identities).find(labels.clone)
        seed = kept.seed if kept is not None else Seed()
        return domain_spec(plan, template, boot, volumes, seed)

    def _plan(
        self,
        labels: Labels,
        template: Template,
        driver: HypervisorDriver,
        macs: Sequence[str],
    ) -> ClonePlan:
        """Return a plan that does nothing, with all that is known of a clone."""
        addresses = macs or [
            clone_mac(driver.mac_prefix, self._host.name, labels.fleet, labels.index, number)
            for number in range(len(template.nics))
        ]
        nics = tuple(Nic(spec=s, mac=m) for s, m in zip(template.nics, addresses, strict=False))
        kept = Identities(self._host.identities).find(labels.clone)
        values = kept.values if kept is not None else own_values(template, labels, nics)
        memory, vcpus = sizes(values)
        return ClonePlan(
            labels=labels,
            steps=(),
            uuid=clone_uuid(self._host.name, labels.fleet, labels.index, labels.template),
            nics=nics,
            values=values,
            memory=memory,
            vcpus=vcpus,
            template=template,
        )

    def previews(self, clones: Sequence[Clone], starter: Starter) -> Iterator[Preview]:
        """Yield what clones of one hypervisor would boot; see :meth:`Engine.boots`."""
        driver = self._backends.hypervisor(clones[0].labels.hypervisor)
        works: dict[str, Work] = {}
        for clone in clones:
            macs = clone.domain.macs if clone.domain is not None else ()
            try:
                template = self.catalog.template(clone.template)
                plan = self._plan(clone.labels, template, driver, macs)
            except VmclonerError as error:
                yield Preview(name=clone.name, provider=clone.labels.boot or "", error=error)
            else:
                works[clone.name] = Work(plan=plan, volumes=clone.volumes)
        states = driver.states()
        idle = [work for work in works.values() if states.get(work.name) is not State.RUNNING]
        with contextlib.ExitStack() as stack:
            for work in idle:
                try:
                    stack.enter_context(self._active(work.volumes))
                except VmclonerError as error:
                    provider = work.plan.labels.boot or ""
                    yield Preview(name=work.name, provider=provider, error=error)
                    del works[work.name]
            yield from starter.preview(driver, list(works.values()))

    @contextlib.contextmanager
    def _active(self, volumes: Sequence[Volume]) -> Iterator[None]:
        """Have volumes active for a while; those that were so before stay so."""
        made: list[Volume] = []
        try:
            for volume in volumes:
                for outcome in self._backends.storage(volume.pool).activate([volume]):
                    outcome.unwrap()
                    if outcome.changed:
                        made.append(volume)
            yield
        finally:
            for volume in made:
                for outcome in self._backends.storage(volume.pool).deactivate([volume]):
                    outcome.unwrap()

    def import_image(
        self,
        template: Template,
        storage: StorageDriver,
        run: str,
        started: float,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """Bring a template's image into a pool, telling observers; unchanged where it is there.

        :param run: the run that it is part of, empty for an import alone.
        :param started: :func:`time.monotonic` at the run's start, from which events count.
        """
        begun = time.monotonic()

        def event(status: StepStatus, error: VmclonerError | None = None) -> None:
            now = time.monotonic()
            self._plugins.step_changed(
                StepEvent(
                    run=run,
                    clone=template.name,
                    step=Step.IMPORT,
                    status=status,
                    at=now - started,
                    seconds=now - begun,
                    error=error,
                )
            )

        def progress(done: int, total: int) -> None:
            self._plugins.progress(
                ProgressEvent(run=run, what=f"import {template.name}", done=done, total=total)
            )

        event(StepStatus.STARTED)
        try:
            with images.obtained(template, self._builder(template), self._host, progress) as image:
                outcome = storage.import_image(template.name, image, progress, copying)
        except VmclonerError as error:
            event(StepStatus.FAILED, error)
            raise
        event(StepStatus.DONE if outcome.changed else StepStatus.UNCHANGED)
        return outcome

    def build_image(self, name: str) -> ImageFile:
        """Make a template's image, and nothing where it is made already.

        :raises InvalidRequest: its image is not one that is made here.
        """
        template = self.catalog.template(name)
        builder = self._builder(template)
        if builder is None:
            raise InvalidRequest(
                f"template {name!r} has no image builder",
                hint=f"vmcloner template import {name}",
            )

        def progress(done: int, total: int) -> None:
            self._plugins.progress(
                ProgressEvent(run="", what=f"build {name}", done=done, total=total)
            )

        return images.build(builder, template.folder, progress)

    def declare_built(
        self, name: str, parent: str, builder: str, options: Mapping[str, Any]
    ) -> Path:
        """Write a template whose image a builder makes; see :func:`catalog.write_built`.

        :raises InvalidRequest: the builder takes no such options.
        """
        self._backends.builder(builder, options, f"image {name}")
        return write_built(name, parent, builder, options)

    def _builder(self, template: Template) -> ImageBuilder | None:
        source, where = template.image, f"template {template.name}"
        if source.builder is None:
            return None
        return self._backends.builder(source.builder, source.options, where)


def origin_of(storage: StorageDriver, template: str) -> Origin | None:
    """Return a template's image in a pool, None where it isn't there."""
    return next((o for o in storage.origins() if o.template == template), None)


def owner() -> str:
    """Return who is asking: the user behind sudo where there is one."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user id without an entry in passwd(5)
        return str(os.getuid())


def now() -> str:
    """Return the time as labels have it: UTC, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
