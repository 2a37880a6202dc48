"""A lease is given back unless a guest boots by it, however the two halves end.

Without a network: the resolver is played, and a packet socket by one of a pair.
"""

import mmap
import os
import signal
import socket
import subprocess
import time
from ipaddress import IPv4Address
from types import SimpleNamespace

import pytest

from vmcloner_pxe import packet, worker
from vmcloner_pxe.dhcp import Lease
from vmcloner_pxe.errors import NetbootError
from vmcloner_pxe.link import Link
from vmcloner_pxe.location import Location
from vmcloner_pxe.resolver import Found, Guest

KERNEL = Location(scheme="tftp", host="10.0.0.1", path="k")
IDS = (65534, 65534)


def lease(number):
    return Lease(
        address=IPv4Address(f"10.0.0.{number}"), netmask=None, router=None, boot_server="10.0.0.1",
        boot_file="f", config_file=None, path_prefix=None, server=IPv4Address("10.0.0.1"),
        server_mac=b"\2" * 6,
    )  # fmt: skip


class Resolver:
    """Gives guest 52:54:00:00:00:NN the address 10.0.0.NN, and does then what it was made with."""

    def __init__(self, then=lambda: None, seconds=60.0):
        self.fetcher = SimpleNamespace(deadline=time.monotonic() + seconds, max_size=1000)
        self.then = then

    def leases(self, guest, _where):
        yield lease(int(guest.mac[-2:], 16))

    def find(self, _guest, given):
        self.then()
        return Found(lease=given, config=KERNEL, label="x", kernel=KERNEL)

    def fetch(self, _found):
        return ()


class Site:
    def __init__(self, count):
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
        self.ours = [pair[0] for pair in pairs]
        self.link = Link(sockets=tuple(pair[1] for pair in pairs))

    def serve(self, resolver, take, order=None):
        macs = [f"52:54:00:00:00:{number + 1:02x}" for number in range(len(self.ours))]
        guests = [Guest(mac=mac) for mac in macs]
        worker.serve(resolver, order or worker.Order(), guests, self.link, IDS, take)

    def given_back(self):
        """The addresses that were given back."""
        found = []
        for one in self.ours:
            one.setblocking(False)
            while True:
                try:
                    bootp = one.recv(2000)[42:]
                except BlockingIOError:
                    break
                options = packet.parse_options(bootp[240:])
                assert options[packet.MESSAGE_TYPE] == bytes([packet.RELEASE])
                found.append(str(IPv4Address(bootp[12:16])))
        return sorted(found)


@pytest.fixture
def site():
    made = Site(3)
    yield made
    for one in (*made.ours, *made.link.sockets):
        one.close()


def test_a_large_process_has_a_worker_too(site):
    """The worker's limit is for what it takes itself: a test runner or a service may be large."""
    size = worker.MAX_MEMORY + 64 * 1024**2
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS):
        site.serve(Resolver(), lambda _answer: True)


def test_what_is_used_is_kept(site):
    site.serve(Resolver(), lambda _answer: True)
    assert site.given_back() == []


def test_what_the_other_half_could_not_use_is_given_back(site):
    site.serve(Resolver(), lambda answer: answer.index != 1)
    assert site.given_back() == ["10.0.0.2"]


def test_what_it_had_not_come_to_when_it_failed_is_given_back(site):
    taken = []

    def take(answer):
        if taken:
            raise NetbootError("no room")
        taken.append(f"10.0.0.{answer.index + 1}")
        return True

    with pytest.raises(NetbootError, match="no room"):
        # All have their leases before the first is answered for.
        site.serve(Resolver(lambda: time.sleep(0.3)), take)
    assert sorted([*taken, *site.given_back()]) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def refuse():
    raise NetbootError("no such file")


@pytest.mark.parametrize(
    ("then", "order"),
    [
        (refuse, worker.Order()),
        (lambda: None, worker.Order(fetch=False)),
        (lambda: None, worker.Order(release=True)),
    ],
)
def test_failures_dry_runs_and_requests_give_it_back_once(site, then, order):
    site.serve(Resolver(then), lambda answer: answer.error is None, order)
    assert site.given_back() == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_a_dry_run_may_keep_it(site):
    site.serve(Resolver(), lambda _answer: True, worker.Order(fetch=False, release=False))
    assert site.given_back() == []


def test_a_worker_that_overruns_its_deadline_is_asked_first(site):
    began = time.monotonic()
    with pytest.raises(NetbootError, match="timeout: it took too long"):
        site.serve(Resolver(lambda: time.sleep(60), seconds=0.5), lambda _answer: True)
    assert site.given_back() == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert time.monotonic() - began < 10


class Stopped(BaseException):
    pass


def test_a_signal_gives_it_back(site):
    def stop(_number, _frame):
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with (
            subprocess.Popen(["sh", "-c", f"sleep 1; kill -TERM {os.getpid()}"]),
            pytest.raises(Stopped),
        ):
            site.serve(Resolver(lambda: time.sleep(60)), lambda _answer: True)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert site.given_back() == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_of_two_leases_the_last_counts(site):
    class Twice(Resolver):
        def leases(self, guest, _where):
            number = int(guest.mac[-2:], 16)
            yield lease(number)
            yield lease(number + 100 * (number == 2))

    site.serve(Twice(), lambda _answer: True)
    assert site.given_back() == ["10.0.0.2"]


def test_a_lease_is_given_back_where_the_second_cannot_be_had(site):
    class Once(Resolver):
        def leases(self, guest, where):
            yield from super().leases(guest, where)
            refuse()

    site.serve(Once(), lambda answer: answer.error is None)
    assert site.given_back() == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
