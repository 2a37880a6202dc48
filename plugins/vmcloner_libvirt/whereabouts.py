"""Addresses of running domains: from leases, from the host's neighbours, else from guest agents.

An agent's answer is a guest's input: its time and number of addresses are bounded, and only
addresses of the domain's own cards count.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs

from vmcloner_core.drivers import AgentInterface
from vmcloner_core.errors import WrongState
from vmcloner_libvirt import guest_scripts
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.connection import Connections
from vmcloner_libvirt.errors import is_disconnect
from vmcloner_libvirt.forwarding import Forward, described
from vmcloner_libvirt.metadata import labels_in, parse
from vmcloner_libvirt.operations import lookup, tolerate

CHANNEL = "org.qemu.guest_agent.0"
log = logging.getLogger(__name__)
AGENT_TIMEOUT = 2
"""Seconds for an agent's answer."""
FREEZE_TIMEOUT = 60
"""Seconds in which a guest writes what it holds in memory, before its disks are frozen."""
MAX_ADDRESSES = 16
ASKERS = 8
"""Guest agents that are asked in parallel: one that doesn't answer takes its whole timeout."""
CLOCK_TRIES = 3
CLOCK_PAUSE = 0.3
"""Seconds between the tries to set a guest's clock."""


@attrs.frozen(kw_only=True)
class Located:
    """A running domain of ours.

    :param macs: of the cards not in user mode. :param channel: whether there is a channel for an
        agent. :param agent: whether its agent has reported. :param forwards: of cards in user mode.
    """

    name: str
    macs: tuple[str, ...]
    agent: bool
    channel: bool = False
    forwards: tuple[Forward, ...] = ()


class GuestAgents(AgentInterface):
    """The agents of one host's guests. Thread-safe."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def reported(self, names: Sequence[str]) -> frozenset[str]:
        """See :meth:`AgentInterface.reported`."""
        return frozenset(domain.name for domain in self._located(names) if domain.agent)

    def set_clocks(self, names: Sequence[str]) -> None:
        """See :meth:`AgentInterface.set_clocks`.

        QEMU tells libvirt a moment after a restore that the agent is there: hence the second try.
        """
        left = [domain.name for domain in self._located(names) if domain.channel]
        for tries in range(CLOCK_TRIES):
            if not left:
                return
            time.sleep(CLOCK_PAUSE if tries else 0)
            with ThreadPoolExecutor(ASKERS, thread_name_prefix="clocks") as pool:
                left = [name for name, done in pool.map(self._set, left) if not done]

    def _located(self, names: Sequence[str]) -> tuple[Located, ...]:
        # By name: many forks ask at once, each for itself alone.
        return self._connections.ask(functools.partial(located, names=names))

    def run(self, name: str, script: bytes, *, timeout: float) -> None:
        """See :meth:`AgentInterface.run`."""
        # Each question on its own: a script that takes long holds no connection.
        ask = functools.partial(self._connections.call, about=name)
        guest_scripts.run(ask, name=name, script=script, timeout=timeout)

    def freeze(self, name: str) -> None:
        """See :meth:`AgentInterface.freeze`."""
        self._connections.call(lambda connection: freeze(connection, name), about=name)

    def thaw(self, name: str) -> None:
        """See :meth:`AgentInterface.thaw`."""
        self._connections.call(lambda connection: thaw(connection, name), about=name)

    def _set(self, name: str) -> tuple[str, bool]:
        return name, self._connections.call(
            lambda connection: set_clock(connection, name), about=name
        )


def newest_first(given: Mapping[str, Sequence[tuple[int, str]]]) -> dict[str, tuple[str, ...]]:
    """Return each MAC's addresses from its leases (expiry, address)."""
    return {mac: tuple(ip for _, ip in sorted(held)[::-1]) for mac, held in given.items()}


def running(connection: Any) -> tuple[Located, ...]:
    """Return our running domains."""
    return tuple(_ours(connection.listAllDomains(libvirt().VIR_CONNECT_LIST_DOMAINS_ACTIVE)))


def located(connection: Any, names: Sequence[str]) -> tuple[Located, ...]:
    """Return those of our domains with these names; one that is off has no agent."""
    found = (lookup(connection, name) for name in names)
    return tuple(_ours(domain for domain in found if domain is not None))


def _ours(domains: Iterable[Any]) -> Iterator[Located]:
    for domain in domains:
        with tolerate("VIR_ERR_NO_DOMAIN"):
            root = parse(domain.XMLDesc(0))
            labels = labels_in(root)
            if labels is not None and labels.clone == domain.name():
                yield _located(domain.name(), root)


def _located(name: str, root: Any) -> Located:
    cards = (card for card in root.iterfind("devices/interface") if card.get("type") != "user")
    channels = [
        channel
        for channel in root.iterfind("devices/channel/target")
        if channel.get("name") == CHANNEL
    ]
    return Located(
        name=name,
        macs=tuple(mac.get("address", "").lower() for c in cards for mac in c.iterfind("mac")),
        agent=any(channel.get("state") == "connected" for channel in channels),
        channel=bool(channels),
        forwards=tuple(described(root)),
    )


def known(domain: Located, sources: Sequence[Mapping[str, tuple[str, ...]]]) -> tuple[str, ...]:
    """Return a domain's addresses in the order of the sources.

    :param sources: addresses by MAC.
    """
    found = (ip for mac in domain.macs for source in sources for ip in source.get(mac, ()))
    return tuple(dict.fromkeys(found))


def told(connection: Any, domain: Located) -> tuple[str, ...]:
    """Return the addresses that a guest's agent reports; none if it doesn't answer."""
    module = libvirt()
    try:
        handle = connection.lookupByName(domain.name)
        handle.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
        source = module.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
        cards = handle.interfaceAddresses(source, 0)
    except module.libvirtError as error:
        if is_disconnect(error):
            raise
        return ()
    found = (
        str(address.get("addr", ""))
        for card in cards.values()
        if str(card.get("hwaddr", "")).lower() in domain.macs
        for address in card.get("addrs") or ()
    )
    return tuple(ip for ip in found if _usable(ip))[:MAX_ADDRESSES]


def set_clock(connection: Any, name: str) -> bool:
    """Set a guest's clock by its agent: to its hardware clock's time, which went on.

    Tell whether that worked.
    """
    module = libvirt()
    try:
        handle = connection.lookupByName(name)
        handle.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
        try:
            handle.setTime(None, module.VIR_DOMAIN_TIME_SYNC)
        except module.libvirtError as error:
            if is_disconnect(error):
                raise
            seconds, fraction = divmod(time.time_ns(), 10**9)
            handle.setTime({"seconds": seconds, "nseconds": fraction}, 0)
    except module.libvirtError as error:
        if is_disconnect(error):
            raise
        return False
    return True


def freeze(connection: Any, name: str, *, otherwise: str = "") -> None:
    """Freeze a guest's file systems by its agent.

    :param otherwise: what else the hint says, after stopping it.
    :raises WrongState: there is none that does; nothing is frozen then.
    """
    thaw(connection, name)  # of a command that was killed: freezing what is frozen fails
    module = libvirt()
    try:
        handle = connection.lookupByName(name)
        handle.agentSetResponseTimeout(FREEZE_TIMEOUT, 0)
        handle.fsFreeze()
    except module.libvirtError as error:
        if is_disconnect(error):
            raise
        thaw(connection, name)  # it may have frozen some
        raise WrongState(
            f"{name} is running, and no agent in the guest froze its disks: {error}",
            hint=f"vmcloner stop {name}{otherwise}",
        ) from error


def thaw(connection: Any, name: str) -> None:
    """Thaw a guest's file systems by its agent, as far as they are frozen.

    An agent that is still freezing them answers after that: hence as much time.
    """
    module = libvirt()
    try:
        handle = connection.lookupByName(name)
        handle.agentSetResponseTimeout(FREEZE_TIMEOUT, 0)
        handle.fsThaw()
    except module.libvirtError as error:
        if is_disconnect(error):
            raise
        log.debug("%s: %s", name, error)  # no agent, or off: then nothing is frozen


def _usable(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)
