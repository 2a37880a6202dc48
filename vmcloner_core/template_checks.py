"""Check templates before clones are made from them: compatibility, and the value of each key."""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs

from vmcloner_core.birth import Birth
from vmcloner_core.booting import boot_request, defined_boot, domain_spec
from vmcloner_core.clone_spec import clone_spec, filled
from vmcloner_core.disks import disk_numbers
from vmcloner_core.drivers import BootRequest, HypervisorDriver
from vmcloner_core.errors import InvalidRequest, NotFound, VmclonerError
from vmcloner_core.identity_rules import authorized_keys, resolve
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import (
    BootConfig,
    Check,
    CloneSpec,
    DomainSpec,
    Labels,
    Needs,
    Seed,
    Status,
    Template,
    Volume,
    clone_mac,
    clone_uuid,
)
from vmcloner_core.names import volume_name
from vmcloner_core.outcomes import guarded
from vmcloner_core.plan import Readiness
from vmcloner_core.planner import check_wait
from vmcloner_core.preflight import check_networks
from vmcloner_core.records import identity_request
from vmcloner_core.units import counted

FILE = "file"
"""The name of the checks of a template's file itself."""


class _Warning(VmclonerError):
    """Something that doesn't keep clones from being made."""


class TemplateChecks:
    """Checks of templates against one host.

    :param hypervisor: name of the default hypervisor.
    :param storage: name of the default pool.
    """

    def __init__(self, host: LocalHost, hypervisor: str, storage: str) -> None:
        self._host = host
        self._hypervisor = hypervisor
        self._storage = storage

    def pairing(self, template: Template, hypervisor: HypervisorDriver) -> None:
        """Check that template, boot provider, identity provider and hypervisor are compatible.

        :raises InvalidRequest: they aren't; names the template and compatible ones.
        """
        where = f"template {template.name!r}"
        if hypervisor.kind not in template.hypervisors:
            raise InvalidRequest(
                f"{where} doesn't run on {hypervisor.kind}",
                hint=f"it runs on {', '.join(template.hypervisors)}",
            )
        backend, provider = self._host.drivers.boot(template.boot)
        if hypervisor.kind not in backend.hypervisors:
            raise InvalidRequest(
                f"{where}: boot provider {template.boot!r} doesn't boot on {hypervisor.kind}",
                hint=f"it boots on {', '.join(sorted(backend.hypervisors))}",
            )
        if hypervisor.kind in backend.at_start and not hypervisor.one_shot:
            raise InvalidRequest(
                f"{where}: boot provider {template.boot!r} is asked at each start, but "
                f"{hypervisor.name} boots only by the definition"
            )
        with guarded(self._host.drivers.backend("boot", template.boot, "check")):
            provider.check(template)
        with guarded(self._host.drivers.backend("hypervisor", hypervisor.name, "check")):
            hypervisor.check(template)
        identity, identifier = self._host.drivers.identity(template.identity.provider)
        if identity.cmdline and not backend.cmdline:
            raise InvalidRequest(
                f"{where}: identity provider {identity.name!r} needs a kernel command line, "
                f"which boot provider {template.boot!r} doesn't set",
                hint="use identity provider cloud-init, or boot = 'kernel'",
            )
        with guarded(self._host.drivers.backend("identity", identity.name, "check")):
            identifier.check(template)

    def unused(self, template: Template, hypervisor: HypervisorDriver) -> tuple[str, ...]:
        """Return a line for each key that a template sets and that has no effect on its clones."""
        boot = self._host.drivers.boot(template.boot)[1]
        identifier = self._host.drivers.identity(template.identity.provider)[1]
        found = {
            f"hypervisor {hypervisor.name!r}": hypervisor.unused(template),
            f"boot provider {template.boot!r}": boot.unused(template),
            f"identity provider {template.identity.provider!r}": identifier.unused(template),
        }
        return tuple(
            f"template {template.name}: {key} has no effect with {whose}"
            for whose, keys in found.items()
            for key in keys
        )

    def boot_at_start(self, template: Template, hypervisor: HypervisorDriver) -> str | None:
        """Return the template's boot provider if it is asked at each start, else None."""
        backend, _ = self._host.drivers.boot(template.boot)
        return template.boot if hypervisor.kind in backend.at_start else None

    def seed(self, spec: CloneSpec) -> None:
        """Check that a clone's identity seed can be made.

        :raises InvalidRequest: it can't be.
        """
        provider = spec.template.identity.provider
        identifier = self._host.drivers.identity(provider)[1]
        home = self._host.records.imagined(spec.name)
        with guarded(self._host.drivers.backend("identity", provider, "check_seed")):
            identifier.check_seed(identity_request(spec, home))

    def domain(
        self, spec: CloneSpec, driver: HypervisorDriver, volumes: tuple[Volume, ...] = ()
    ) -> DomainSpec:
        """Return the specification that a clone's domain would be defined from."""
        request = boot_request(spec, driver, volumes)
        boot = self._defined_boot(driver, request)
        kept = self._host.records.find(spec.name)
        return domain_spec(spec, boot, volumes, kept.seed if kept is not None else Seed())

    def _defined_boot(self, driver: HypervisorDriver, request: BootRequest) -> BootConfig:
        name, drivers = request.template.boot, self._host.drivers
        return defined_boot(drivers.boot(name), driver, request, drivers.backend("boot", name))

    def needs(self, spec: CloneSpec, driver: HypervisorDriver) -> Needs:
        """Check that the host has what a clone needs, before it is made; its disks are imagined.

        :raises VmclonerError: it lacks something; one line with the way out.
        """
        domain = self.imagined(spec, driver)
        with guarded(self._host.drivers.backend("hypervisor", driver.name, "check_domain")):
            return driver.check_domain(domain)

    def imagined(self, spec: CloneSpec, driver: HypervisorDriver) -> DomainSpec:
        """Return the domain of a clone that isn't made, with disks and a seed that aren't there.

        :raises VmclonerError: it can't be made so.
        """
        request = boot_request(spec, driver, ())
        try:
            boot = self._defined_boot(driver, request)
        except VmclonerError:  # a kernel that isn't built yet, or a server that doesn't answer
            boot = _imagined_boot(spec.template)
        places = [volume_name(spec.name, number) for number in disk_numbers(spec.template)]
        home = self._host.records.folder / spec.name
        volumes = tuple(
            Volume(name=name, pool="", labels=spec.labels, path=home / name, size=0)
            for name in places
        )
        backend, identifier = self._host.drivers.identity(spec.template.identity.provider)
        image = identifier.seeds and not backend.cmdline
        seed = Seed(image=home / "seed" if image else None)
        return domain_spec(spec, boot, volumes, seed)

    def macs(self, labels: Labels, template: Template, driver: HypervisorDriver) -> list[str]:
        """Return a clone's preferred MAC addresses, without checking that they are free."""
        return [
            clone_mac(driver.mac_prefix, self._host.seed, labels.fleet, labels.index, number)
            for number in range(len(template.nics))
        ]

    def checks(self, name: str) -> tuple[Check, ...]:
        """Check a template without making a clone of it: all of it, whatever is wrong.

        :raises NotFound: there is none. :raises InvalidRequest: its file can't be read at all.
        """
        found: list[Check] = []

        def look_at(what: str, look: Callable[[], str]) -> None:
            try:
                found.append(Check(backend=name, name=what, status=Status.OK, detail=look()))
            except VmclonerError as error:
                later = isinstance(error, _Warning)
                found.append(
                    Check(
                        backend=name,
                        name=what,
                        status=Status.WARNING if later else Status.FAILED,
                        detail=error.message,
                        fix=error.hint or "",
                        exit_code=error.exit_code,
                    )
                )

        self._host.drivers.check_settings()
        template, problems = self._host.catalog.examined(name)
        for problem in problems:
            found.append(
                Check(
                    backend=name,
                    name=FILE,
                    status=Status.FAILED,
                    detail=problem,
                    exit_code=InvalidRequest.exit_code,
                )
            )
        if template is None:
            return tuple(found)
        if not problems:
            look_at(FILE, lambda: str(template.origin_file))
        look_at("image", lambda: self._image(template))
        look_at("boot", lambda: self._boot(template))
        look_at("domain", lambda: self._domain(template))
        look_at("host", lambda: self._needs(template))
        look_at("identity", lambda: self._identity(template))
        look_at("keys", lambda: self._keys(template))
        look_at("ready", lambda: self._ready(template))
        return tuple(found)

    def _image(self, template: Template) -> str:
        images = self._host.images
        pools = [origin.pool for origin in images.origins(template.name)]
        there = f"in pool {', '.join(pools)}" if pools else ""
        if images.builder(template) is not None:
            return there or f"will be built by {template.image.builder!r}"
        try:
            kind = images.check(template)
        except NotFound:
            if not there:
                raise
            return there
        if template.image.captured is not None:
            return there or f"will be imported from pool {template.image.captured.pool}"
        source = f"{template.image.path or template.image.url}{kind and f' ({kind})'}"
        return there or f"will be imported from {source}"

    def _boot(self, template: Template) -> str:
        self.pairing(template, self._driver())
        return f"{template.boot} on {self._hypervisor}"

    def _domain(self, template: Template) -> str:
        driver = self._driver()
        try:
            xml = driver.render(self.domain(self._sample(template), driver))
        except VmclonerError:
            if template.image.builder is None or os.path.exists(  # noqa: PTH110
                template.folder
            ):
                raise
            return "known when its image is built, at the first create"
        return f"{counted(len(xml.splitlines()), 'line')} of domain XML"

    def _needs(self, template: Template) -> str:
        driver = self._driver()
        networks = driver.networks.inspect() if driver.networks is not None else None
        if networks is not None:
            check_networks(template, (), networks, ())
        needs = self.needs(self._sample(template), driver)
        if needs.warnings:
            raise _Warning(needs.warnings[0])
        return "has what the domain needs"

    def _identity(self, template: Template) -> str:
        provider = template.identity.provider
        if not self._host.drivers.identity(provider)[1].seeds:
            return provider
        spec, keys = self._sample(template), authorized_keys(template)
        self.seed(attrs.evolve(spec, identity=resolve(spec, keys, spec.labels.run)))
        own = ", and vmcloner's own" if template.identity.authorized_keys != () else ""
        return f"{provider}; keys that may log in: {len(keys)} of yours{own}"

    def _keys(self, template: Template) -> str:
        unused = self.unused(template, self._driver())
        if unused:
            raise _Warning("; ".join(unused), hint="remove them, or choose another provider")
        return "each has an effect"

    def _ready(self, template: Template) -> str:
        wait = Readiness.parse(template.readiness)
        check_wait(wait, template)
        return str(filled(wait, self._sample(template)))

    def _driver(self) -> HypervisorDriver:
        return self._host.drivers.hypervisor(self._hypervisor)

    def _sample(self, template: Template) -> CloneSpec:
        """Return the specification of a clone that is never made."""
        birth = Birth.now()
        labels = Labels(
            fleet="check",
            index=1,
            template=template.name,
            run="check",
            owner=birth.owner,
            created=birth.created,
            storage=self._storage,
            hypervisor=self._hypervisor,
        )
        known = clone_uuid(self._host.seed, labels.fleet, labels.index, labels.template)
        return clone_spec(template, labels, known, self.macs(labels, template, self._driver()))


def _imagined_boot(template: Template) -> BootConfig:
    """Return what a clone boots whose boot provider can't tell yet."""
    kernel = template.kernel
    if kernel is None or kernel.path is None:
        return BootConfig()
    initrd = (template.folder / kernel.initrd).absolute() if kernel.initrd is not None else None
    return BootConfig(kernel=(template.folder / kernel.path).absolute(), initrd=initrd, devices=())
