"""Where a lab is: what its file is compared with, and what carries out what differs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

import attrs

from vmcloner_core.catalog import Catalog
from vmcloner_core.labs.model import Lab, LabImage
from vmcloner_core.model import Clone, Network, NetworkChange, NetworkRequest, Template
from vmcloner_core.plan import RunResult
from vmcloner_core.records import Record
from vmcloner_core.request import Request
from vmcloner_core.survey import Survey
from vmcloner_core.template_images import TemplateImages

if TYPE_CHECKING:
    from vmcloner_core.labs.compare import Comparison


@attrs.frozen(kw_only=True)
class NetworkOn:
    """A network, and which hypervisor of which host has it."""

    host: str
    hypervisor: str
    network: Network


class Site(ABC):
    """One host, or several that a controller asks.

    :param catalog, images: those of the machine that the user is on.
    """

    catalog: Catalog
    images: TemplateImages
    many = False
    """Whether there are several hosts, with templates of their own."""

    @abstractmethod
    def survey(self) -> Survey:
        """Return all clones."""

    @abstractmethod
    def check_seen(self, lab: Lab, found: Survey) -> None:
        """Check that no clone of a lab can be where a survey could not look.

        :raises BackendError: one can.
        """

    @abstractmethod
    def records(self, clones: Iterable[Clone]) -> dict[str, Record]:
        """Return the records of clones that have one, by name."""

    @abstractmethod
    def template(self, name: str, host: str = "") -> Template:
        """Return a template as a host has it; without a host, as new clones get it.

        :raises NotFound: there is none.
        """

    @abstractmethod
    def default(self, kind: Literal["storage", "hypervisor"]) -> str | None:
        """Return the backend of clones for which none is named; None if that isn't known."""

    def on(self, host: str) -> str:
        """Return words that say on which of several hosts something is; none for the only one."""
        return f" on {host}" if self.many else ""

    @abstractmethod
    def networks(self, lab: Lab) -> tuple[NetworkOn, ...]:
        """Return the networks that carry a lab's name.

        :raises BackendError: a hypervisor that the file names for networks can't be read.
        """

    @abstractmethod
    def prepare(
        self, request: NetworkRequest, hypervisor: str | None
    ) -> Mapping[str, NetworkChange]:
        """Make a network wherever clones may need it; returns what that changes, by host."""

    @abstractmethod
    def remove(self, network: NetworkOn) -> None:
        """Remove a network."""

    @abstractmethod
    def build(self, name: str, image: LabImage) -> None:
        """Build a template's image."""

    @abstractmethod
    def pull(self, name: str) -> None:
        """Download a template's image."""

    @abstractmethod
    def hold(self, lab: Lab, cancelled: Callable[[], bool]) -> AbstractContextManager[None]:
        """Keep other applies of a lab out until the block ends."""

    @abstractmethod
    def run(self, request: Request) -> RunResult:
        """Carry a request out."""

    @abstractmethod
    def forecast(
        self,
        lab: Lab,
        compared: Comparison,
        found: Survey,
        gone: Collection[str],
        requests: Mapping[str, Sequence[Request]],
    ) -> tuple[Clone, ...]:
        """Check that requests are possible, before anything is changed.

        :param gone: the clones that are deleted first. :param requests: by fleet, in their order.
        :returns: the clones that will be there.
        :raises VmclonerError: one isn't possible; names file, line and key.
        """
