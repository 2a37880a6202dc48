"""What running guests use, by libvirt's statistics of all domains: one call for all of them."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from vmcloner_core.drivers import StatisticsInterface
from vmcloner_core.model import State, Statistics
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.connection import Connections
from vmcloner_libvirt.errors import is_code
from vmcloner_libvirt.operations import tolerate

PROC = Path("/proc")
_PSS = re.compile(r"^Pss: +(\d+) kB$", re.MULTILINE)
_KIB = 1024
_NANOSECONDS = 1e9


class DomainStatistics(StatisticsInterface):
    """The statistics of one host's domains. Thread-safe.

    :param states: returns the states of our domains.
    """

    def __init__(self, connections: Connections, states: Callable[[], Mapping[str, State]]) -> None:
        self._connections = connections
        self._states = states

    def read(self, names: Collection[str]) -> Mapping[str, Statistics]:
        """See :meth:`StatisticsInterface.read`."""
        running = (State.RUNNING, State.PAUSED)
        wanted = {n for n, state in self._states().items() if n in names and state in running}

        def read(connection: Any) -> dict[str, Statistics]:
            found = {}
            for domain, values in _all(connection):
                if domain.name() in wanted:
                    with tolerate("VIR_ERR_NO_DOMAIN", "VIR_ERR_OPERATION_INVALID"):
                        found[domain.name()] = _statistics(domain, values)
            return found

        return self._connections.ask(read) if wanted else {}


class QemuStatistics(DomainStatistics):
    """Those of domains whose guests are processes of the host. Thread-safe.

    :param pid_files: returns where a domain's process id may be.
    """

    def __init__(
        self,
        connections: Connections,
        states: Callable[[], Mapping[str, State]],
        pid_files: Callable[[str], Iterable[Path]],
    ) -> None:
        super().__init__(connections, states)
        self._pid_files = pid_files

    def shares(self, names: Collection[str]) -> Mapping[str, int]:
        """See :meth:`StatisticsInterface.shares`: proc_pid_smaps(5)."""
        found = {name: self._share(name) for name in names}
        return {name: share for name, share in found.items() if share is not None}

    def _share(self, name: str) -> int | None:
        for file in self._pid_files(name):
            with contextlib.suppress(OSError, ValueError):
                process = PROC / str(int(file.read_text(encoding="ascii")))
                # A file that was left may name another process.
                if f"guest={name},".encode() not in (process / "cmdline").read_bytes():
                    continue
                rollup = (process / "smaps_rollup").read_text(encoding="ascii")
                found = _PSS.search(rollup)
                return int(found[1]) * _KIB if found is not None else None  # it has just ended
        return None


def _all(connection: Any) -> Iterable[tuple[Any, Mapping[str, Any]]]:
    """Return the active domains with libvirt's statistics of them; libxl's driver has none.

    A guest whose monitor is busy isn't waited for: it lacks what is asked there.
    """
    module = libvirt()
    groups = ("CPU_TOTAL", "BALLOON", "VCPU", "INTERFACE", "BLOCK")
    wanted = sum(getattr(module, f"VIR_DOMAIN_STATS_{group}") for group in groups)
    flags = module.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    flags |= module.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    try:
        found: Iterable[tuple[Any, Mapping[str, Any]]]
        found = connection.getAllDomainStats(wanted, flags)
    except module.libvirtError as error:
        if not is_code(error, "VIR_ERR_NO_SUPPORT"):
            raise
        domains = connection.listAllDomains(module.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        found = [(domain, {}) for domain in domains]
    return found


def _statistics(domain: Any, values: Mapping[str, Any]) -> Statistics:
    time_used, memory, vcpus = (
        values.get(key) for key in ("cpu.time", "balloon.current", "vcpu.current")
    )
    if time_used is None or memory is None:
        _, _, current, processors, used = domain.info()
        time_used, memory, vcpus = time_used or used, memory or current, vcpus or processors
    resident = values.get("balloon.rss")
    return Statistics(
        at=time.monotonic(),
        cpu=time_used / _NANOSECONDS,
        vcpus=vcpus,
        memory=memory * _KIB,
        resident=None if resident is None else resident * _KIB,
        disk_read=_sum(values, "block", "rd.bytes"),
        disk_written=_sum(values, "block", "wr.bytes"),
        net_received=_sum(values, "net", "rx.bytes"),  # as the guest sees it: libvirt swaps them
        net_sent=_sum(values, "net", "tx.bytes"),
    )


def _sum(values: Mapping[str, Any], group: str, key: str) -> int | None:
    """Return the sum over the disks or the cards of a domain, None where there is no number."""
    count = values.get(f"{group}.count", 0)
    found = [values[k] for n in range(count) if (k := f"{group}.{n}.{key}") in values]
    return sum(found) if found else None
