"""Measure the controller of many hosts with simulated hosts; see README.md beside this file.

Each host is an engine with the reference drivers, in one of two other processes; what crosses is
the same JSON as over ssh. So the processor's time and the memory are the controller's alone, and
the seconds are those of all together, without networks and guests.
Run it as a module: ``.venv/bin/python -m benchmarks.hosts 10 100 --each 100``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

from vmcloner_core.engine import Engine
from vmcloner_core.hosts.beside import Beside
from vmcloner_core.hosts.carrier import Carrier, Event, Unreachable
from vmcloner_core.hosts.controller import Controller
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Host, RemoteHost
from vmcloner_core.placing import Where
from vmcloner_core.plugins import PluginHost
from vmcloner_core.request import MAX_CLONES, CreateRequest, TargetRequest
from vmcloner_core.results import check_result
from vmcloner_core.settings import Defaults, HostSettings, Settings
from vmcloner_core.testing.reference import BootPlugin, HypervisorPlugin, StoragePlugin

PROCESSES = 2
"""In which the hosts' engines are."""
TEMPLATE = """
hypervisors = ["reference"]
boot = "reference"
memory = "1MiB"
[image]
path = "image.raw"
"""
SETTINGS = Settings(
    defaults=Defaults(hypervisor="reference", storage="reference"),
    hosts={"local": HostSettings()},
)


@attrs.frozen(kw_only=True)
class Row:
    """One measurement: what was done with how many hosts and clones; MiB at most.

    The processor's time is beside the clock's, since a busy machine changes only the latter.
    """

    hosts: int
    clones: int
    what: str
    seconds: float
    cpu_seconds: float
    cpu_per_clone_ms: float
    peak_mib: int


def settle(folder: Path) -> None:
    """Have this process read a template ``sim`` from a folder, and nothing of the user's."""
    templates = folder / "config/vmcloner/templates"
    templates.mkdir(parents=True)
    (templates / "sim.toml").write_text(TEMPLATE)
    (templates / "image.raw").write_bytes(bytes(1024**2))
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")


def beside(folder: Path) -> Beside:
    """Return what answers a controller on a simulated host."""
    folder.mkdir()
    backends = [StoragePlugin(), HypervisorPlugin(), BootPlugin()]
    host = attrs.evolve(SETTINGS.host("local"), state=folder / "state", seed=folder.name)

    def opened(plugin: object) -> Engine:
        plugins = PluginHost([*backends, plugin])
        return Engine(SETTINGS, plugins, LocalHost(host, plugins))

    return Beside(opened)


class Workers(Carrier):
    """Carries calls to engines in other processes; each makes one call at a time."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers: dict[str, tuple[Connection, threading.Lock]] = {}
        self._processes = []
        for first in range(PROCESSES):
            mine = names[first::PROCESSES]
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, folder, mine), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._workers |= dict.fromkeys(mine, (ours, threading.Lock()))

    def connect(self, hosts: Sequence[RemoteHost]) -> dict[str, Unreachable]:  # noqa: ARG002
        """Return nothing: all are there."""
        return {}

    def call(self, host: str, name: str, text: str, event: Event) -> str:
        """Make one call."""
        connection, lock = self._workers[host]
        with lock:
            connection.send((host, name, text))
            while True:
                kind, said = connection.recv()
                if kind == "answer":
                    return str(said)
                event(said)

    def close(self) -> None:
        """End the processes."""
        for connection, _ in self._workers.values():
            connection.close()
        for process in self._processes:
            process.join()


def serve(connection: Connection, folder: Path, names: Sequence[str]) -> None:
    """Answer the calls of some hosts until the connection ends."""
    besides = {name: beside(folder / name) for name in names}
    with suppress(EOFError):
        while True:
            host, name, text = connection.recv()
            answer = besides[host](name, text, lambda said: connection.send(("event", said)))
            connection.send(("answer", answer))
    for each in besides.values():
        each.close()


@contextmanager
def controller(folder: Path, hosts: int) -> Iterator[Controller]:
    """Yield a controller of simulated hosts."""
    names = [f"host{number}" for number in range(1, hosts + 1)]
    carrier = Workers(folder, names)
    addresses = [RemoteHost(name=name, ssh=name, python="python3") for name in names]
    own = Host(name="controller", state=folder / "controller")
    version = metadata.version("vmcloner")
    yield Controller(SETTINGS, PluginHost(), carrier, addresses, own, version=version)
    carrier.close()


def requests(hosts: int, each: int) -> Iterator[CreateRequest]:
    """Yield requests for a number of clones on each host, each of as many as one may have.

    Each fleet has hosts of its own, so that a host's part is the same however many hosts there are.
    """
    step = MAX_CLONES // each
    for first in range(0, hosts, step):
        names = [f"host{number + 1}" for number in range(first, min(hosts, first + step))]
        yield CreateRequest(
            fleet=f"fleet{first // step + 1}",
            template="sim",
            count=each * len(names),
            where=Where(hosts=tuple(names)),
        )


def for_each(do: Callable[[CreateRequest], object], asked: Iterable[CreateRequest]) -> None:
    """Make a call for each request, and keep no result: they would count as memory."""
    for request in asked:
        do(request)


def measure(hosts: int, each: int, folder: Path) -> Iterator[Row]:
    """Yield the rows of one number of hosts."""
    clones = hosts * each

    def timed(what: str, do: Callable[[], Any]) -> Row:
        began, used = time.perf_counter(), time.process_time()
        do()
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return Row(
            hosts=hosts, clones=clones, what=what, seconds=round(seconds, 2),
            cpu_seconds=round(cpu, 2), cpu_per_clone_ms=round(1000 * cpu / clones, 3),
            peak_mib=peak,
        )  # fmt: skip

    with controller(folder, hosts) as all_hosts:
        all_hosts.survey()  # opens the engines
        asked = tuple(requests(hosts, each))
        yield timed("plan", lambda: for_each(all_hosts.plan, asked))
        yield timed("create", lambda: for_each(lambda r: check_result(all_hosts.run(r)), asked))
        found = all_hosts.list()
        assert len(found) == len({c.name for c in found}) == len({c.mac for c in found}) == clones
        yield timed("list", all_hosts.list)
        yield timed("delete", lambda: all_hosts.run(
            TargetRequest(action="delete", everything=True)
        ))  # fmt: skip
        assert all_hosts.list() == ()


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("hosts", nargs="*", type=int, default=[10, 100])
    parser.add_argument("--each", type=int, default=100, help="Clones on each host.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settle(folder)
        for hosts in arguments.hosts:
            place = folder / f"with-{hosts}"
            place.mkdir()
            for row in measure(hosts, arguments.each, place):
                rows.append(row)
                Console(stderr=True).print(row)
    if arguments.json:
        print(json.dumps([attrs.asdict(row) for row in rows]))
        return
    table = Table(*(field.name for field in attrs.fields(Row)))
    for row in rows:
        table.add_row(*map(str, attrs.astuple(row)))
    Console().print(table)


if __name__ == "__main__":
    main()
