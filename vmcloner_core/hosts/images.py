"""Send a template and its image to the hosts that lack it.

All bytes go through the controller: hosts need not reach each other, and no key of the user's is
lent to one. A part of a file is read and compressed once, and then sent to all hosts that need it.
The source is the controller, or else a host that has the image; where one is lost, the next one
goes on, and so do hosts that have just got it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs

from vmcloner_core.errors import Interrupted, VmclonerError, WrongState
from vmcloner_core.hosts.beside import Asked
from vmcloner_core.hosts.carrier import Unreachable
from vmcloner_core.hosts.chunks import Chunk
from vmcloner_core.hosts.links import Links
from vmcloner_core.hosts.parcels import STEP, Holding, Parcel
from vmcloner_core.hosts.sending import Parts, SourceLost, Told
from vmcloner_core.names import fold
from vmcloner_core.plugins import PluginHost
from vmcloner_core.request import CreateRequest

log = logging.getLogger(__name__)
OWN = "controller"
"""What stands for the controller itself among the sources."""


class NotSentYet(WrongState):
    """A host lacks a template, which a create would send there."""


class Images:
    """Where a request's template is, and how it gets to where it is not.

    :param links: the hosts. :param own: the controller itself, as a host called OWN.
    :param uploads: to how many hosts an image is sent at once.
    """

    def __init__(
        self,
        links: Links,
        own: Links,
        plugins: PluginHost,
        *,
        uploads: int,
        cancelled: Callable[[], bool],
    ) -> None:
        self._links = links
        self._own = own
        self._plugins = plugins
        self._uploads = uploads
        self._cancelled = cancelled
        self._found: dict[str, Holding] = {}
        self._newest = ""
        self._asked = Asked()

    def look(self, request: CreateRequest) -> int:
        """Find out which hosts have the request's template.

        :returns: bytes of memory of one of its clones, for the hosts that don't have it; 0 if all
            that may get clones have it.
        """
        self._asked = Asked(name=request.template, storage=request.storage or "")
        asked = dict.fromkeys(self._links.names, self._asked)
        wanted = {name: a for name, a in asked.items() if request.where.allows(name)}
        self._found = self._links.all("holding", wanted, Holding)
        if len({found.digest for found in self._found.values() if found.digest}) > 1:
            log.warning("the hosts have different images of template %s", request.template)
        sent = any(found.sent and found.digest for found in self._found.values())
        self._newest = self._own.one(OWN, "newest", self._asked, str) if sent else ""
        if not self._lacking(wanted):
            return 0
        others = {name: a for name, a in asked.items() if name not in wanted}
        found = self._links.ask("holding", others, Holding)
        self._found |= {n: answer for n, answer in found.items() if isinstance(answer, Holding)}
        self._found[OWN] = self._own.one(OWN, "holding", self._asked, Holding)
        return max(found.memory for found in self._found.values())

    def _lacking(self, hosts: Iterable[str]) -> list[str]:
        """Return the hosts that lack the template or its image."""
        return [n for n in hosts if not (self._found[n].template and self._found[n].image)]

    def _outdated(self, hosts: Iterable[str]) -> list[str]:
        """Return the hosts to which an earlier image than the controller's was sent."""
        found = {name: self._found[name] for name in hosts if self._newest}
        return [n for n, it in found.items() if it.sent and it.digest not in ("", self._newest)]

    def _retire(self, hosts: Iterable[str]) -> None:
        """Remove earlier images from hosts; those whose clones are linked to it keep it."""
        asked = dict.fromkeys(self._outdated(hosts), self._asked)
        for host, kept in self._links.all("retire", asked, str).items():
            if kept:
                log.warning(
                    "host %r: its clones are made of an earlier image of template %s than there is "
                    "here: %s (delete those clones, or give the new image another name)",
                    host, self._asked.name, kept,
                )  # fmt: skip
            else:
                self._found[host] = Holding(template=False)

    def there(self, hosts: Collection[str]) -> None:
        """Check that hosts have the template: for a plan that changes nothing.

        :raises NotSentYet: one has to get it first.
        """
        lacking = self._lacking(hosts)
        if lacking and self._sources(lacking):
            name = self._asked.name
            raise NotSentYet(
                f"template {name} is not on {fold(lacking)} yet: a create sends it there first",
                hint="--dry-run can tell more when it is there, or with --hosts",
            )

    def _sources(self, lacking: Collection[str]) -> list[str]:
        """Return who has the template and its image, the controller first.

        A host's own template may not give others devices of theirs, or XML.

        :raises WrongState: only hosts have it, and all of theirs are such.
        """
        having = [name for name, found in self._found.items() if found.template and found.image]
        having.sort(key=lambda name: (name != OWN, name))
        if any(not self._found[name].template for name in lacking):
            unfit = {name: self._found[name].why for name in having if name != OWN}
            having = [name for name in having if not unfit.get(name)]
            for name, why in unfit.items():
                if why and not having:
                    raise WrongState(
                        f"template {self._asked.name} of host {name!r} has {why}, which is not "
                        "taken over to other hosts",
                        hint="put the template on this machine, or on each host",
                    )
        return having

    def send(self, run: str, hosts: Collection[str]) -> None:
        """Send the template to those of these hosts that lack it, and wait until they have it.

        Idempotent: what has arrived before is not sent again.

        :raises VmclonerError: the error of the first host that has not got it.
        """
        self._retire(hosts)
        targets = self._lacking(hosts)
        if targets and OWN not in self._found:
            self._found[OWN] = self._own.one(OWN, "holding", self._asked, Holding)
        sources = self._sources(targets) if targets else []
        if not sources:
            return  # the hosts themselves say what they miss
        told = Told(self._plugins, run, self._asked.name)
        with told:
            for place, source in enumerate(sources):
                try:
                    targets = self._sent(source, targets, told)
                except Unreachable:
                    if place + 1 == len(sources):
                        raise
                if not targets:
                    return

    def _sent(self, source: str, targets: list[str], told: Told) -> list[str]:
        """Send from one source; returns the hosts that still lack it, as the source was lost."""
        ask = functools.partial(self._one, source)
        parcel = ask("pack", self._asked, Parcel)
        try:
            told.total = parcel.size * len(targets)
            with (
                Parts(lambda item, at: ask("chunk", self._part(item, at), Chunk)) as parts,
                ThreadPoolExecutor(min(self._uploads, len(targets)), STEP) as pool,
            ):
                one = functools.partial(self._to, parcel, parts, told)
                errors = dict(zip(targets, pool.map(one, targets), strict=True))
        finally:
            self._closed(ask)
        for name, error in errors.items():
            if error is not None and not isinstance(error, SourceLost):
                raise type(error)(f"host {name!r}: {error.message}", hint=error.hint)
        return [name for name, error in errors.items() if error is not None]

    def _closed(self, ask: Callable[..., Any]) -> None:
        try:
            ask("unpack", self._asked, type(None))
        except VmclonerError:
            return  # it is lost: its files are closed

    def _part(self, item: str, offset: int) -> Asked:
        return attrs.evolve(self._asked, item=item, offset=offset)

    def _one(self, host: str, call: str, asked: Asked, kind: type[Any]) -> Any:
        return (self._own if host == OWN else self._links).one(host, call, asked, kind)

    def _to(self, parcel: Parcel, parts: Parts, told: Told, host: str) -> VmclonerError | None:
        """Send a parcel to a host; returns the error that ended that."""
        asked = attrs.evolve(self._asked, parcel=parcel)
        kind: Any = tuple[int, ...]
        try:
            there = self._links.one(host, "offer", asked, kind)
            for item, since in zip(parcel.items, there, strict=True):
                self._file(host, attrs.evolve(asked, item=item.name), since, parts, told)
                told.arrived(host, item.name, item.data)
            self._links.one(host, "arrived", asked, bool)
        except VmclonerError as error:
            return error
        self._found[host] = attrs.evolve(self._found[host], template=True, image=True)
        return None

    def _file(self, host: str, asked: Asked, since: int, parts: Parts, told: Told) -> None:
        """Send the rest of a file."""
        assert asked.parcel is not None  # noqa: S101 - the caller's
        size = next(i.size for i in asked.parcel.items if i.name == asked.item)
        while since < size:
            if self._cancelled():
                raise Interrupted("stopped by the user")
            chunk = parts(asked.item, since)
            now = self._links.one(
                host, "receive", attrs.evolve(asked, offset=since, chunk=chunk), int
            )
            # It may be further, by another transfer; a hostile host could go on for ever.
            if not max(since + 1, chunk.end(size)) <= now <= size:
                raise WrongState(
                    f"{asked.item} of template {asked.name}: another transfer began anew",
                    hint="run the same command again",
                )
            since = now
            told.passed(host, asked.item, chunk)
