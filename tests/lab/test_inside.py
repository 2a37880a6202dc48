"""What a lab promises to those who use it, looked at from inside."""

import fcntl
import json
import re
import secrets
import subprocess
import time
from pathlib import Path

import pytest

GUEST = Path("/opt/lab/guest")
KVM_GET_API_VERSION = 0xAE00  # linux/kvm.h


def run(*argv: object, timeout: float = 300) -> str:
    words = [str(word) for word in argv]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def report(command: str, *options: str) -> dict[str, str]:
    answer = json.loads(run(command, "--reportformat", "json", "--units", "b", *options))
    ((row,),) = answer["report"][0].values()
    return row


@pytest.mark.lvm
def test_the_kvm_host():
    with open("/dev/kvm", "rb") as kvm:  # noqa: PTH123
        assert fcntl.ioctl(kvm, KVM_GET_API_VERSION) == 12
    assert "thin-pool" in run("dmsetup", "targets")
    assert "qemu:///system" in run("virsh", "-c", "qemu:///system", "uri")


@pytest.mark.lvm
def test_the_disks():
    pool = report("lvs", "-o", "segtype,data_percent,zero,size", "vg/pool")
    assert (pool["segtype"], float(pool["data_percent"]), pool["zero"]) == ("thin-pool", 0, "zero")
    group = report("vgs", "-o", "vg_free,vg_mda_free,vg_mda_size", "vg")
    assert int(group["vg_free"][:-1]) > 8 * 1024**3
    # Each volume takes up to 415 bytes, in each of two copies.
    assert int(group["vg_mda_free"][:-1]) > 2 * 415 * 20_000
    assert run("wipefs", "/dev/vdc") == ""
    assert int(run("blockdev", "--getsize64", "/dev/vdc")) == 8 * 1024**3


@pytest.mark.lvm
def test_vmcloner_and_what_tiny_is_made_of():
    assert run("vmcloner", "--version").startswith("vmcloner ")
    assert Path("/opt/vmcloner/bin/vmcloner").exists()
    assert "Filename: " in run("apt-cache", "show", "linux-image-cloud-amd64", "busybox-static")


@pytest.fixture
def guest(tmp_path):
    """Start a guest by xl, and destroy what there is of it in the end."""
    name = f"lab-test-{secrets.token_hex(3)}"  # consoles' logs outlive their guests

    def start(**settings: object) -> str:
        config = tmp_path / "xl.cfg"
        settings = {"name": name, "memory": 32, "vcpus": 1, **settings}
        # xl.cfg(5) is written as Python writes strings, numbers and lists.
        config.write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()))
        run("xl", "create", config)
        return name

    yield start
    subprocess.run(["xl", "destroy", name], check=False, capture_output=True, timeout=300)


def ready(name: str) -> dict[str, str]:
    """Return what the guest says of itself, once it does."""
    console = Path(f"/var/log/xen/console/guest-{name}.log")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        text = console.read_text(errors="replace") if console.exists() else ""
        if match := re.search(r"^vmcloner-ready (.*)$", text, re.MULTILINE):
            return dict(word.split("=") for word in match[1].split())
        time.sleep(0.2)
    raise AssertionError(f"not ready: {text[-1000:]}")


@pytest.mark.xen
def test_the_xen_host():
    assert re.search(r"^Domain-0 +0 ", run("xl", "list"), re.MULTILINE)
    assert "Domain-0" in run("virsh", "-c", "xen:///system", "list")
    assert float(report("lvs", "-o", "data_percent", "vg/pool")["data_percent"]) == 0


@pytest.mark.xen
@pytest.mark.timeout(900)
def test_a_pv_guest_by_pygrub_says_its_name_and_shuts_down(guest, tmp_path):
    disk = tmp_path / "disk.raw"
    disk.write_bytes((GUEST / "disk.raw").read_bytes())
    name = guest(
        type="pv",
        bootloader="pygrub",
        disk=[f"file:{disk},xvda,w"],
        vif=["bridge=xenbr0,mac=00:16:3e:00:00:07"],
    )
    said = ready(name)
    assert said == {
        "name": name,
        "mac": "00:16:3e:00:00:07",
        "disk": "32768",
        "boots": "1",
        "hostname": "template",
    }
    run("xl", "shutdown", "-w", name)
    deadline = time.monotonic() + 60
    while name in run("xl", "list"):  # until the daemon that xl left behind has destroyed it
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert disk.read_bytes().startswith(f"vmcloner-tiny 1 {name}\n".encode())


@pytest.mark.xen
@pytest.mark.timeout(900)
def test_a_pvh_guest_needs_no_disk(guest):
    name = guest(
        type="pvh",
        kernel=str(GUEST / "vmlinuz"),
        ramdisk=str(GUEST / "initrd.img"),
        cmdline="console=hvc0 quiet host=said-so",
    )
    assert ready(name) == {
        "name": "said-so",
        "mac": "none",
        "disk": "none",
        "boots": "none",
        "hostname": "none",
    }
