"""Guests that boot from real servers, as libxl runs a bootloader."""

import json
import pwd
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.pxe import runner
from tests.pxe.network import HOST, PYPXEBOOT, WEB, bzimage

pytestmark = pytest.mark.pxe


@pytest.fixture(scope="module")
def files(site):
    (site.net.tftp / "vmlinuz").write_bytes(bzimage(300_001))
    (site.net.tftp / "a.img").write_bytes(b"a" * 1001)
    (site.net.tftp / "b.img").write_bytes(b"b" * 10)
    return site.net.tftp


def label(*lines):
    return "\n".join(["DEFAULT x", "LABEL x", *lines, ""])


def test_boots_what_its_own_configuration_says(site, files):
    mac = "52:54:00:00:00:01"
    site.net.config(mac, label("KERNEL vmlinuz", "APPEND initrd=a.img,b.img root=x", "SYSAPPEND 7"))
    machine = "5c7c0f3e-6f0a-5a52-9d7e-0d6a1b8a7f11"
    taken = site.boot(mac, f"--uuid={machine}", options=["--args=more=1"])
    assert taken.status == 0, taken.console
    address = _address(site, mac)
    assert taken.arguments == (
        f"root=x ip={address}:10.77.0.1:10.77.0.1:255.255.255.0"
        f" BOOTIF=01-52-54-00-00-00-01 SYSUUID={machine} more=1"
    )
    assert taken.kernel == (files / "vmlinuz").read_bytes()
    assert taken.ramdisk == b"a" * 1001 + b"\0" * 3 + b"b" * 10
    assert (taken.left, taken.warnings) == ((), ())
    assert address in taken.console


def _address(site, mac):
    [line] = [line for line in site.leases().splitlines() if mac in line]
    return line.split()[2]


@pytest.mark.parametrize("mode", ["raw", "port", "netns"])
def test_every_mode_gets_the_same(site, files, mode):
    before = site.net.ports()
    mac = "52:54:00:00:00:02"
    site.net.config(mac, label("KERNEL vmlinuz"))
    taken = site.boot(mac, f"--mode={mode}", "--no-cache")
    assert (taken.status, taken.kernel) == (0, (files / "vmlinuz").read_bytes()), taken.console
    end = time.monotonic() + 10  # the kernel removes a namespace's ports a moment after its end
    while site.net.ports() != before and time.monotonic() < end:
        time.sleep(0.1)
    assert site.net.ports() == before


def test_a_server_that_checks_the_source_address_needs_netns(site, files):
    mac = "52:54:03:00:03:01"
    site.net.config(mac, label("KERNEL owner"))
    taken = site.boot(mac, "--no-cache")
    assert (taken.status, "not from this address" in taken.console) == (1, True)
    taken = site.boot(mac, "--no-cache", "--mode=netns")
    assert taken.status == 0, taken.console
    assert len(taken.kernel) == 2000


def test_one_server_gives_the_address_another_says_what_to_boot(site, files):
    mac = "52:54:0c:00:00:01"
    site.net.config(mac, label("KERNEL vmlinuz", "APPEND by=proxy"))
    taken = site.boot(mac, "--no-cache")
    assert (taken.status, taken.arguments) == (0, "by=proxy"), taken.console
    assert f"{_address(site, mac)} from 10.77.0.5" in taken.console


def test_a_boot_server_on_the_host_itself(site, files):
    mac = "52:54:0e:00:00:01"
    site.net.config(mac, label("KERNEL vmlinuz", f"INITRD http://{HOST}/a.img"))
    taken = site.boot(mac, "--no-cache")
    assert (taken.status, taken.ramdisk) == (0, b"a" * 1001), taken.console
    site.net.config(mac, label("KERNEL http://127.0.0.1/vmlinuz"))
    assert "127.0.0.1 is a loopback address" in site.boot(mac).console


def test_a_server_with_windows(site, files):
    mac = "52:54:01:00:00:01"
    (files / "large").write_bytes(bzimage(5_000_003, seed=7))
    site.net.config(mac, label("KERNEL large", "INITRD a.img"))
    taken = site.boot(mac)
    assert taken.kernel == (files / "large").read_bytes(), taken.console


def test_block_numbers_wrap(site, files):
    mac = "52:54:01:00:00:03"
    size = 65536 * 1428 + 5
    with (files / "huge.img").open("wb") as stream:
        stream.truncate(size)
        stream.seek(size - 5)
        stream.write(b"final")
    site.net.config(mac, label("KERNEL vmlinuz", "INITRD huge.img"))
    taken = site.boot(mac)
    (files / "huge.img").unlink()
    assert (len(taken.ramdisk), taken.ramdisk[-5:]) == (size, b"final")


def test_an_ipxe_script_by_http(site, files):
    (files / "boot.ipxe").write_text(
        f"#!ipxe\nkernel vmlinuz mac=${{mac}}\ninitrd http://{WEB}/a.img\nboot\n"
    )
    taken = site.boot("52:54:02:00:00:01")
    assert taken.status == 0, taken.console
    assert (taken.kernel, taken.ramdisk) == (bzimage(300_001), b"a" * 1001)
    assert taken.arguments == "mac=52:54:02:00:00:01"


def test_ipxe_as_boot_file_is_asked_for_its_script(site, files):
    (files / "scripts").mkdir()
    (files / "scripts" / "boot.ipxe").write_text("#!ipxe\nkernel /vmlinuz by=script\nboot\n")
    taken = site.boot("52:54:0b:00:00:01")
    assert (taken.status, taken.arguments) == (0, "by=script"), taken.console


def test_options_209_and_210(site, files):
    (files / "prefix").mkdir()
    (files / "prefix" / "own.cfg").write_text(label("KERNEL ::vmlinuz", "APPEND by=209"))
    taken = site.boot("52:54:09:00:00:01")
    assert (taken.status, taken.arguments) == (0, "by=209"), taken.console


def test_of_two_offers_the_one_with_a_boot_file(site, files):
    mac = "52:54:08:00:00:01"
    site.net.config(mac, label("KERNEL vmlinuz"))
    taken = site.boot(mac)
    assert taken.status == 0, taken.console
    assert "10.77.0.60 " not in taken.console  # the hostile server's


@pytest.mark.parametrize("joined", [False, True])
def test_arguments_as_libvirt_joins_them_and_the_ancestors_vif(site, files, joined):
    mac = "52:54:00:00:00:04"
    site.net.config(mac, label("KERNEL vmlinuz"))
    words = [f"mac={mac}, bridge=br0", f"--cache={site.folder / 'cache'}"]
    taken = runner.run(
        PYPXEBOOT,
        [" ".join(words)] if joined else words,
        "/dev/null",
        prefix=site.net.inside("host", []),
    )
    assert taken.status == 0, taken.console


def test_a_dry_run_keeps_no_lease_and_makes_no_file(site, files):
    mac = "52:54:00:00:00:05"
    site.net.config(mac, label("KERNEL vmlinuz", "INITRD a.img", "APPEND z"))
    done = site.dry(mac)
    found = json.loads(done.stdout)
    assert (found["kernel"], found["initrds"], found["arguments"], found["local"]) == (
        *("tftp://10.77.0.1/vmlinuz", ["tftp://10.77.0.1/a.img"], "z", False),
    )
    assert found["config"] == "tftp://10.77.0.1/pxelinux.cfg/01-52-54-00-00-00-05"
    assert mac not in site.leases()


def test_localboot_becomes_pygrub_and_gives_the_lease_back(site, files, tmp_path):
    mac = "52:54:00:00:00:06"
    site.net.config(mac, label("LOCALBOOT 0"))
    pygrub = tmp_path / "pygrub"
    kernel = tmp_path / "k"
    pygrub.write_text(
        f"#!{sys.executable}\n"
        "import sys, pathlib, shutil\n"
        "out = dict(a.split('=', 1) for a in sys.argv[1:] if a.startswith('--output'))\n"
        "path = pathlib.Path(out['--output-directory'], 'boot_kernel.x')\n"
        "path.write_bytes(b'from the disk'); path.chmod(0o600)\n"
        "args = ' '.join(sys.argv[1:3] + sys.argv[-1:])\n"
        "pathlib.Path(out['--output']).write_bytes(f'kernel {path}\\0args {args}\\0\\0'.encode())\n"
    )
    pygrub.chmod(0o755)
    taken = site.boot(mac, f"--pygrub={pygrub}", options=["--runas=65534", "--quiet"], disk=kernel)
    assert (taken.status, taken.kernel) == (0, b"from the disk"), taken.console
    assert taken.arguments == f"--runas=65534 --quiet {kernel}"
    assert mac not in site.leases()


def test_a_lease_is_given_back_on_request_and_after_a_failure(site, files):
    mac = "52:54:00:00:00:07"
    site.net.config(mac, label("KERNEL vmlinuz"))
    assert site.boot(mac).status == 0
    assert mac in site.leases()
    assert site.boot(mac, "--release").status == 0
    assert mac not in site.leases()
    site.net.config(mac, label("KERNEL missing"))
    assert site.boot(mac).status == 1
    assert mac not in site.leases()


def test_nobody_reads_what_the_network_sends(site, files):
    """The cache, which the reading half fills, is its user's; and it isn't root."""
    mac = "52:54:00:00:00:08"
    (files / "other").write_bytes(bzimage(4000, seed=8))
    site.net.config(mac, label("KERNEL other"))
    assert site.boot(mac, options=["--runas=12345", "--quiet"]).console == ""
    owned = {p.stat().st_uid for p in (site.folder / "cache" / "uid-12345").iterdir()}
    assert owned == {12345}
    assert site.boot(mac).status == 0
    nobody = pwd.getpwnam("nobody").pw_uid
    assert (site.folder / "cache" / f"uid-{nobody}").stat().st_uid == nobody
    taken = site.boot(mac, options=["--runas=0", "--quiet"])
    assert (taken.status, "root" in taken.console) == (2, True)


def test_the_cache_is_used_and_follows_the_servers_version(site, files):
    mac = "52:54:03:00:03:02"
    (files / "cached").write_bytes(bzimage(4000, seed=1))
    site.net.config(mac, label("KERNEL cached"))
    assert site.boot(mac).kernel == bzimage(4000, seed=1)
    (files / "cached").write_bytes(bzimage(4000, seed=2))
    assert site.boot(mac).kernel == bzimage(4000, seed=1)  # same size, for ten minutes
    assert site.boot(mac, "--no-cache").kernel == bzimage(4000, seed=2)
    (files / "cached").write_bytes(bzimage(4001, seed=2))
    assert site.boot(mac).kernel == bzimage(4001, seed=2)


def test_the_guests_own_network_has_no_part_in_the_cache(site, files):
    """On another bridge the same address may be another server."""
    mac = "52:54:03:00:03:03"
    (files / "own").write_bytes(bzimage(4000, seed=1))
    site.net.config(mac, label("KERNEL own"))
    assert site.boot(mac, "--mode=netns").kernel == bzimage(4000, seed=1)
    (files / "own").write_bytes(bzimage(4000, seed=2))
    assert site.boot(mac).kernel == bzimage(4000, seed=2)  # not what came from there
    (files / "own").write_bytes(bzimage(4000, seed=3))
    assert site.boot(mac, "--mode=netns").kernel == bzimage(4000, seed=3)


def test_fifty_at_once_get_fifty_addresses_and_one_download(site, files):
    size = 2_000_000
    (files / "shared").write_bytes(bzimage(size, seed=9))
    macs = [f"52:54:00:00:50:{number:02x}" for number in range(50)]
    for mac in macs:
        site.net.config(mac, label("KERNEL shared", f"APPEND own={mac}"))
    batch = _batch(site, macs)
    for mac in macs:
        (site.folder / "state" / mac).mkdir(parents=True)
    answers = {answer["key"]: answer for answer in _resolved(site, batch)}
    assert [a["error"] for a in answers.values() if a["error"]] == []
    assert len({answer["address"] for answer in answers.values()}) == 50
    assert all(answers[mac]["arguments"] == f"own={mac}" for mac in macs)
    kernels = [site.folder / "state" / mac / "kernel" for mac in macs]
    assert len({path.stat().st_ino for path in kernels}) == 1  # one copy for all
    assert kernels[0].stat().st_size == size
    assert kernels[0].stat().st_nlink == 51
    assert kernels[0].stat().st_mode & 0o777 == 0o644
    batch["dry_run"] = True  # gives the leases back
    assert all(answer["error"] is None for answer in _resolved(site, batch))


def test_a_guest_whose_folder_is_gone_has_no_lease_and_the_others_boot(site, files):
    macs = ["52:54:00:00:60:01", "52:54:00:00:60:02"]
    for mac in macs:
        site.net.config(mac, label("KERNEL vmlinuz"))
    (site.folder / "state" / macs[0]).mkdir(parents=True)
    batch = _batch(site, macs)
    answers = {answer["key"]: answer["error"] for answer in _resolved(site, batch)}
    assert answers[macs[0]] is None
    assert "No such file or directory (ENOENT)" in answers[macs[1]]
    assert macs[0] in site.leases()
    assert macs[1] not in site.leases()


def _batch(site, macs):
    state = site.folder / "state"
    machine = "5c7c0f3e-6f0a-5a52-9d7e-0d6a1b8a7f11"
    guests = [
        {"key": mac, "mac": mac, "machine": machine, "folder": str(state / mac)} for mac in macs
    ]
    return {"interface": "br0", "store": str(state / "netboot"), "timeout": 60, "guests": guests}


def _resolved(site, batch):
    done = subprocess.run(
        site.net.inside("host", [sys.executable, "-m", "vmcloner_pxe.batch"]),
        input=json.dumps(batch),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_eight_processes_at_once(site, files):
    macs = [f"52:54:00:00:08:{number:02x}" for number in range(8)]
    for mac in macs:
        site.net.config(mac, label("KERNEL vmlinuz", "INITRD a.img", f"APPEND own={mac}"))

    def boot(mac):
        folder = site.folder / "eight" / mac
        folder.mkdir(parents=True)
        done = site.net.pypxeboot(*site.arguments(mac), f"--output-directory={folder}", "/dev/null")
        return done, sorted(path.stat().st_size for path in folder.iterdir())

    with ThreadPoolExecutor(8) as pool:
        for mac, (done, sizes) in zip(macs, pool.map(boot, macs), strict=True):
            assert (done.returncode, sizes) == (0, [1001, 300_001]), done.stderr
            assert f"args own={mac}\0\0" in done.stdout
    assert len({_address(site, mac) for mac in macs}) == 8
