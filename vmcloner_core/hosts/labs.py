"""A lab on several hosts: each has its part of the fleets, and all of the lab's networks.

Images and templates are this machine's: creates send them to the hosts that lack them. A clone is
compared with its template as its own host has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

import attrs

from vmcloner_core.errors import Conflict, InvalidRequest, NotFound, VmclonerError
from vmcloner_core.hosts import merging
from vmcloner_core.hosts.beside import Asked
from vmcloner_core.hosts.calls import CALLS
from vmcloner_core.hosts.groups import named
from vmcloner_core.hosts.images import NotSentYet
from vmcloner_core.hosts.parcels import Holding
from vmcloner_core.labs.model import Lab, LabImage
from vmcloner_core.labs.one_host import OneHost
from vmcloner_core.labs.site import NetworkOn, Site
from vmcloner_core.model import Clone, NetworkChange, NetworkRequest, Template
from vmcloner_core.names import fold
from vmcloner_core.placing import Where
from vmcloner_core.plan import RunResult
from vmcloner_core.records import Record
from vmcloner_core.request import CreateRequest, Request
from vmcloner_core.settings import LOCAL
from vmcloner_core.survey import Survey

if TYPE_CHECKING:
    from vmcloner_core.hosts.controller import Controller
    from vmcloner_core.hosts.links import Links
    from vmcloner_core.labs.compare import Comparison


class ManyHosts(Site):
    """The hosts of a controller.

    :param own: this machine.
    """

    many = True

    def __init__(self, lab: Lab, controller: Controller, links: Links, own: OneHost) -> None:
        self._controller = controller
        self._links = links
        self._own = own
        self._templates: dict[tuple[str, str], Template] = {}
        self.catalog = own.catalog
        self.images = own.images
        self._check(lab)

    def _check(self, lab: Lab) -> None:
        """Check what a lab may not say if it is on several hosts."""
        for name, fleet in lab.fleets.items():
            try:
                self._placed(fleet.where)
            except VmclonerError as error:
                raise lab.located(error, f"fleets.{name}.hosts") from error

    def _placed(self, where: Where) -> Where:
        """Return where new clones go, with the names of the hosts.

        :raises NotFound, InvalidRequest: some words name no hosts.
        """
        return attrs.evolve(where, hosts=named(self._controller.settings, where.hosts))

    def survey(self) -> Survey:
        """See :meth:`Site.survey`."""
        return self._controller.survey()

    def check_seen(self, lab: Lab, found: Survey) -> None:
        """See :meth:`Site.check_seen`."""
        if self._controller.without:
            raise InvalidRequest(
                f"lab {lab.name}: --without can't be used with a lab",
                hint="remove that host from the settings if it is gone for good",
            )
        others = self._others()
        if others:
            raise InvalidRequest(
                f"lab {lab.name}: --host can't be used with a lab: it may also be on {others[0]}",
                hint="leave out --host",
            )
        found.check_complete(f"lab {lab.name}")
        merging.check_once(
            tuple(c for c in found.clones if c.labels.lab == lab.name or c.fleet in lab.fleets)
        )

    def _others(self) -> list[str]:
        """Return the hosts of the settings that aren't looked at."""
        settings = self._controller.settings
        known = {host.name for host in settings.remote} | ({LOCAL} & settings.hosts.keys())
        return sorted(known - set(self._controller.names))

    def records(self, clones: Iterable[Clone]) -> dict[str, Record]:
        """See :meth:`Site.records`."""
        by_host = merging.by_host(clones)
        asked = {host: {"targets": (fold(names),)} for host, names in by_host.items()}
        found = self._links.all("records", asked, CALLS["records"].answer)
        return {
            record.labels.clone: record
            for host, those in found.items()
            for record in those
            if record.labels.clone in by_host[host]
        }

    def template(self, name: str, host: str = "") -> Template:
        """See :meth:`Site.template`."""
        if (name, host) not in self._templates:
            self._templates[name, host] = self._template(name, host)
        return self._templates[name, host]

    def _template(self, name: str, host: str) -> Template:
        if host:
            found: Template = self._links.one(host, "template", {"name": name}, Template)
            return found
        try:
            return self.catalog.template(name)
        except NotFound as error:
            for other in self._links.names:
                try:
                    return self.template(name, other)
                except NotFound:
                    continue
            raise error from None

    def default(self, kind: Literal["storage", "hypervisor"]) -> str | None:  # noqa: ARG002
        """See :meth:`Site.default`: each host has its own."""
        return None

    def networks(self, lab: Lab) -> tuple[NetworkOn, ...]:
        """See :meth:`Site.networks`."""
        named = {network.hypervisor for network in lab.networks.values()} - {None}
        asked = {"lab": lab.name, "hypervisors": sorted(map(str, named))}
        found = self._links.all(
            "lab_networks",
            dict.fromkeys(self._links.names, asked),
            CALLS["lab_networks"].answer,
        )
        return tuple(attrs.evolve(n, host=host) for host, those in found.items() for n in those)

    def prepare(
        self, request: NetworkRequest, hypervisor: str | None
    ) -> Mapping[str, NetworkChange]:
        """See :meth:`Site.prepare`: a network is made on all hosts that may get clones."""
        drained = self._controller.drained.read()
        asked = {"request": request, "hypervisor": hypervisor}
        wanted = [name for name in self._links.names if name not in drained]
        answer = CALLS["prepare_network"].answer
        found: dict[str, NetworkChange] = self._links.all(
            "prepare_network", dict.fromkeys(wanted, asked), answer
        )
        return found

    def remove(self, network: NetworkOn) -> None:
        """See :meth:`Site.remove`."""
        there = network.network
        request = NetworkRequest(name=there.name, bridge=there.kind == "bridge")
        asked = {"request": request, "hypervisor": network.hypervisor}
        self._links.one(network.host, "remove_network", asked, CALLS["remove_network"].answer)

    def build(self, name: str, image: LabImage) -> None:
        """See :meth:`Site.build`: on this machine."""
        self._own.build(name, image)

    def pull(self, name: str) -> None:
        """See :meth:`Site.pull`: on this machine."""
        self._own.pull(name)

    def hold(self, lab: Lab, cancelled: Callable[[], bool]) -> AbstractContextManager[None]:
        """See :meth:`Site.hold`: on this machine. Each run holds its fleet on all hosts."""
        return self._own.hold(lab, cancelled)

    def run(self, request: Request) -> RunResult:
        """See :meth:`Site.run`."""
        return self._controller.run(self._ready(request))

    def _ready(self, request: Request) -> Request:
        if isinstance(request, CreateRequest):
            return attrs.evolve(request, where=self._placed(request.where))
        return request

    def forecast(
        self,
        lab: Lab,
        compared: Comparison,
        found: Survey,
        gone: Collection[str],
        requests: Mapping[str, Sequence[Request]],
    ) -> tuple[Clone, ...]:
        """See :meth:`Site.forecast`: each fleet by itself."""
        to_come = {change.name for change in compared.changes if change.kind != "clone"}
        for change in compared.changes:
            if change.kind == "image":
                self._check_new(lab, change.name, [c for c in found.clones if c.name not in gone])
        for name, those in requests.items():
            fleet = lab.fleets[name]
            later = bool(gone or {fleet.template, fleet.network} & to_come)
            for request in those:
                try:
                    self._check_possible(self._ready(request), gone, fleet.template, later=later)
                except VmclonerError as error:
                    raise lab.located(error, f"fleets.{name}") from error
        return tuple(clone for clone in found.clones if clone.name not in gone)

    def _check_possible(
        self, request: Request, gone: Collection[str], template: str, *, later: bool
    ) -> None:
        """Check a request as far as that is possible now.

        :param later: it can't be planned before something else was done.
        """
        if not later:
            with contextlib.suppress(NotSentYet):
                self._controller.plan(request)
                return
        if isinstance(request, CreateRequest):
            self._controller.check_room(request, gone, new=self._lacks(template))

    def _lacks(self, template: str) -> bool:
        """Tell whether no host has a template yet, nor this machine."""
        try:
            self.template(template)
        except NotFound:
            return True
        return False

    def _check_new(self, lab: Lab, template: str, staying: Sequence[Clone]) -> None:
        """Check that hosts can get a new image of a template.

        :raises Conflict: one has an image of its own, or clones of the earlier one that was sent.
        """
        asked = {name: Asked(name=template) for name in self._links.names if name != LOCAL}
        for name, there in self._links.all("holding", asked, Holding).items():
            users = [c.name for c in staying if (c.host, c.template) == (name, template)]
            if not there.digest or (there.sent and not users):
                continue
            way = f"vmcloner --host {name} template delete {template}"
            error = Conflict(
                f"host {name!r} has an image of {template}, which a new one doesn't replace"
                + (f": {fold(users)} was made of it" if users else ""),
                hint="give the image another name in the file, or "
                + (f"delete {fold(users)} first" if users else f"first: {way}"),
            )
            raise lab.located(error, f"images.{template}")
