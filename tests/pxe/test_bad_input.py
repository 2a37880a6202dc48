"""What bad input gets: one line, the right status, and no file left. One test a case."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.pxe.network import HOST, HOSTILE, bzimage

pytestmark = pytest.mark.pxe


def failed(taken, *parts):
    """Check that a boot failed as it should: with one line, and nothing left."""
    assert taken.status == 1, taken
    lines = taken.console.strip().splitlines()
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0], lines[0]
    assert (taken.left, taken.raw) == ((), b"")


def cached(site):
    """What the cache has beside its locks."""
    return {p.name for p in (site.folder / "cache").glob("*/*") if not p.name.startswith("lock-")}


def hostile(site, kernel, number, *more, **how):
    """Boot a guest whose kernel is one of the hostile server's."""
    mac = f"52:54:03:00:00:{number:02x}"
    site.net.config(mac, f"DEFAULT k\nLABEL k\nKERNEL {kernel}\nAPPEND quiet\n")
    before = cached(site)
    taken = site.boot(mac, *more, **how)
    if taken.status:
        assert cached(site) == before  # no partial file either
    return taken


def complained(site, name):
    """The ERRORs that the hostile server got about a file."""
    lines = site.complaints.read_text().splitlines() if site.complaints.exists() else []
    return [entry["error"] for entry in map(json.loads, lines) if entry["name"] == name]


# --- DHCP ---------------------------------------------------------------------------------------


def test_no_dhcp_server(site):
    mac = "52:54:05:00:00:01"
    failed(site.boot(mac, "--timeout=2"), mac, "br0", "no DHCP")


def test_no_such_interface(site):
    taken = site.boot("52:54:00:00:00:01", "--interface=nosuch0")
    failed(taken, "52:54:00:00:00:01", "nosuch0")


def test_nak_is_asked_again(site):
    failed(site.boot("52:54:06:00:00:01"), "refused 5 requests (busy)", "no address available?")


def test_pool_exhausted(site):
    for number in (1, 2):
        mac = f"52:54:07:00:00:{number:02x}"
        site.net.config(mac, "DEFAULT tiny\n")
        (site.net.tftp / "tiny").write_bytes(bzimage(5000))
        assert site.boot(mac).status == 0
    failed(site.boot("52:54:07:00:00:03", "--timeout=3"), "no DHCP")


def test_no_boot_file(site):
    failed(site.boot("52:54:0a:00:00:01"), "names no boot file", "option 67")


def test_a_proxy_that_wants_to_be_asked_further(site):
    failed(site.boot("52:54:0d:00:00:01"), "proxyDHCP server 10.77.0.5", "dhcp-boot=pxelinux.0")


def test_an_option_that_is_no_text(site):
    mac = "52:54:0f:00:00:01"
    failed(site.boot(mac), "option 210 is not text")
    assert mac not in site.leases()


def test_nobody_answers_ipxe(site):
    mac = "52:54:10:00:00:01"
    failed(site.boot(mac, "--timeout=3"), "no DHCP")
    assert mac not in site.leases()


def test_no_configuration(site):
    failed(site.boot("52:54:00:00:09:09"), "pxelinux.cfg/default", "not there")


# --- TFTP ---------------------------------------------------------------------------------------


def test_tftp_port_closed(site):
    began = time.monotonic()
    failed(site.boot("52:54:04:00:00:01"), "no TFTP server listens there")
    assert time.monotonic() - began < 20  # at once, not after all retries


@pytest.mark.parametrize("name", ["stall", "silent", "wrongblocks"])
def test_a_server_that_never_ends(site, name):
    """The worker itself gives up, and says of which file: the other half can't tell that."""
    taken = hostile(site, name, 1, "--timeout=3")
    failed(taken, f"tftp://10.77.0.4/{name}: timeout: not fetched in time")


@pytest.mark.parametrize("name", ["truncated", "longer"])
def test_tsize_is_not_what_came(site, name):
    failed(hostile(site, name, 3), "truncated: ", "of ")


def test_tsize_of_a_tebibyte(site):
    failed(hostile(site, "huge", 4), "larger than")
    _until(lambda: complained(site, "huge") == [3], "the server wasn't told")


def test_endless_stream(site):
    failed(hostile(site, "endless", 5, "--max-size=1MiB", "--no-cache"), "larger than 1048576")
    _until(lambda: 3 in complained(site, "endless"), "the server wasn't told")


@pytest.mark.parametrize("name", ["unasked", "larger", "window", "negative", "garbage"])
def test_options_that_were_not_asked_for(site, name):
    failed(hostile(site, name, 6), "the server answers with")
    _until(lambda: complained(site, name) == [8], "the server wasn't told")


def test_a_block_that_is_too_long(site):
    failed(hostile(site, "longblock", 7), "longer than 1428 bytes")


def test_a_packet_of_another_kind(site):
    failed(hostile(site, "kind", 8), "a packet of kind 99")


def test_a_server_that_ignores_options(site):
    taken = hostile(site, "plain", 9)
    assert (taken.status, len(taken.kernel)) == (0, 100_000)


def test_lost_blocks_are_sent_again(site):
    taken = hostile(site, "lossy", 10, "--no-cache")
    assert (taken.status, len(taken.kernel)) == (0, 14280)


def test_what_a_server_says_cannot_act_on_the_console(site):
    taken = hostile(site, "escape", 11)
    failed(taken, r"\x1b[2J\r\nfake: line")
    assert "\x1b" not in taken.console


# --- names and configurations -------------------------------------------------------------------


def test_remote_names_are_never_local_paths(site):
    mac = "52:54:03:00:01:01"
    site.net.config(mac, "DEFAULT k\nLABEL k\nKERNEL ../../etc/passwd\nINITRD /etc/passwd\n")
    failed(site.boot(mac), "tftp://10.77.0.4/../../etc/passwd", "not found")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"DEFAULT k\nLABEL k\nKERNEL a\nAPPEND a\x07b\n", "control character"),
        (b"INCLUDE pxelinux.cfg/01-52-54-00-00-02-01\n", "circle"),
        (b"DEFAULT k\0\n", "NUL"),
        (b"DEFAULT k " + b"x" * 5000, "a line of 5010 bytes"),
        (b"", "nothing to boot"),
        (b"#" * 4000 + b"\n" + b"# more\n" * 200_000, "larger than 1048576 bytes"),
    ],
    ids=["control", "loop", "nul", "long", "empty", "large"],
)
def test_configurations(site, text, message):
    mac = "52:54:00:00:02:01"
    site.net.config(mac, "").write_bytes(text)
    failed(site.boot(mac), message)


def test_a_kernel_that_is_none(site):
    (site.net.tftp / "nokernel").write_bytes(b"#!/bin/sh\n" * 1000)
    mac = "52:54:00:00:02:02"
    site.net.config(mac, "DEFAULT nokernel\n")
    failed(site.boot(mac), "neither a bzImage nor ELF")


def test_arguments_that_libxl_would_drop(site):
    (site.net.tftp / "tiny").write_bytes(bzimage(5000))
    mac = "52:54:00:00:02:03"
    site.net.config(mac, f"DEFAULT k\nLABEL k\nKERNEL tiny\nAPPEND {'a' * 4000}\n")
    assert len(site.boot(mac).arguments) == 4000
    failed(site.boot(mac, options=[f"--args={'b' * 4191}"]), "args: ", "8191 at most")
    assert mac not in site.leases()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("http://127.0.0.1/tiny", "127.0.0.1 is a loopback address"),
        ("http://2130706433/tiny", "127.0.0.1 is a loopback address"),
        ("http://[::1]/tiny", "::1 is a loopback address"),
        ("http://[::ffff:127.0.0.1]/tiny", "127.0.0.1 is a loopback address"),
        ("http://0/tiny", "0.0.0.0 is an unspecified address"),
        (f"http://{HOST}/tiny", f"{HOST} is this host's own"),
        (f"http://{HOSTILE}/to?http://localhost/tiny", " is a loopback address"),
        (f"http://{HOSTILE}/to?//{HOST}/tiny", f"{HOST} is this host's own"),
        (f"http://{HOSTILE}/to?/to?/to?/to?/to?/to?/to", "more than 5 times"),
        (f"{HOST}::tiny", f"{HOST} is this host's own"),
        ("tftp://127.0.0.1/tiny", "127.0.0.1 is a loopback address"),
        ("http://169.254.169.254/latest", "169.254.169.254 is a link-local address"),
        ("224.0.0.1::tiny", "224.0.0.1 is a multicast address"),
        ("10.77.0.255::tiny", "10.77.0.255 is not the address of one host"),
    ],
)
def test_what_only_the_host_reaches_is_not_fetched(site, name, why):
    (site.net.tftp / "tiny").write_bytes(bzimage(5000))
    mac = "52:54:00:00:02:06"
    site.net.config(mac, f"DEFAULT k\nLABEL k\nKERNEL {name}\n")
    failed(site.boot(mac, "--no-cache"), why)


def test_initrds_that_are_too_large_together(site):
    (site.net.tftp / "tiny").write_bytes(bzimage(5000))
    (site.net.tftp / "half").write_bytes(bytes(300_000))
    mac = "52:54:00:00:02:05"
    site.net.config(mac, "DEFAULT k\nLABEL k\nKERNEL tiny\nINITRD half,half\n")
    assert len(site.boot(mac).ramdisk) == 600_000
    failed(site.boot(mac, "--max-size=400KiB"), "initrds are larger than 409600 bytes")


# --- being stopped ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_download(site, number):
    before = site.net.ports()

    def stop(pid, _directory):
        _until(lambda: site.net.ports() - before, "no port was plugged in")
        time.sleep(0.3)
        os.kill(pid, number)

    taken = hostile(site, "stall", 12, during=stop)
    assert taken.status == 128 + number
    assert "52:54:03:00:00:0c" not in site.leases()
    assert (taken.left, taken.raw) == ((), b"")
    assert site.net.ports() == before
    _until(lambda: not _workers(site), "a worker lives on")


def test_a_kill_leaves_no_worker_and_no_port(site):
    before = site.net.ports()

    def kill(pid, _directory):
        _until(lambda: _workers(site), "no worker")
        os.kill(pid, signal.SIGKILL)

    assert hostile(site, "stall", 13, during=kill).status == -signal.SIGKILL
    _until(lambda: site.net.ports() == before, "the port is still there")
    _until(lambda: not _workers(site), "a worker lives on")


def _workers(site):
    """The processes that are pypxeboot's in this site, as another user."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                user = entry.stat().st_uid
            except OSError:
                continue
            if any(w.startswith(f"--cache={site.folder}".encode()) for w in words) and user:
                found.append(int(entry.name))
    return found


def _until(condition, complaint):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


def test_a_full_disk(site):
    (site.net.tftp / "big").write_bytes(bzimage(3_000_000))
    mac = "52:54:00:00:02:04"
    site.net.config(mac, "DEFAULT big\n")
    small = site.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        failed(site.boot(mac, folder=small), "No space left on device (ENOSPC)")
        assert mac not in site.leases()
    finally:
        subprocess.run(["umount", small], check=True)


def test_usage(site):
    for words in (["--mac=01:00:00:00:00:01"], ["--nonsense"], ["vif[0]"], ["--mac='x y"]):
        done = site.net.pypxeboot(*words, "--interface=br0", "/dev/null")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
