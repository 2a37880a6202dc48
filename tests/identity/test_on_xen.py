"""A Debian that is built here, as PV guests of a real Xen host: its own kernel, its own name."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.e2e.conftest import VMCLONER
from vmcloner_core.audit import FACTS

pytestmark = [pytest.mark.guests, pytest.mark.slow, pytest.mark.timeout(5400)]

LAB = Path(__file__).parents[2] / "contrib/lab/lab"
COUNT = 2
SETTINGS = """
[defaults]
hypervisor = "xen"
storage = "disks"
[hosts.local.hypervisor.xen]
starts = 1
[hosts.local.storage.disks]
driver = "lvm-thin"
vg = "vg"
thinpool = "pool"
"""
TEMPLATE = """
hypervisors = ["xen"]
boot = "pygrub"
memory = "512MiB"
ready = "ssh"
[image]
path = "disk.raw"
[kernel]
cmdline = "console=hvc0 quiet mitigations=off systemd.default_timeout_start_sec=900"
[[nics]]
kind = "bridge"
source = "guests"
[ssh]
key = "key"
[identity]
provider = "cloud-init"
authorized_keys = ["/mnt/site/templates/key.pub"]
addresses = ["10.9.0.{{ 70 + index }}/24"]
"""
# With the disk on standard input. It prints three lines of JSON.
INSIDE = f"""
exec 3>&1 >&2
# Not the lab's own bridge: on that one, QEMU answers whoever asks by DHCP.
ip link add guests type bridge
ip link set guests up
ip address add 10.9.0.1/24 dev guests
mkfs.ext4 -q /dev/vdc
mkdir /mnt/site
mount /dev/vdc /mnt/site
cd /mnt/site
mkdir templates
tar -x -C templates
cat >vmcloner.toml <<'END'
{SETTINGS}END
cat >templates/deb.toml <<'END'
{TEMPLATE}END
ssh-keygen -q -t ed25519 -N '' -f templates/key
vmcloner() {{ command vmcloner --config vmcloner.toml "$@"; }}
vmcloner template import deb
if ! vmcloner create deb -t deb -n {COUNT} --start --wait --timeout 2400; then
    for index in $(seq {COUNT}); do vmcloner console --log deb-$index | tail -n 30; done
    exit 1
fi
vmcloner exec deb -f json --noindent --timeout 300 -- \\
    'uname -n; cat /etc/machine-id /sys/hypervisor/type /proc/cmdline' >&3
vmcloner audit deb -f json --noindent --timeout 300 >&3
vmcloner list deb -f json --noindent >&3
vmcloner stop deb --timeout 900
virsh -q -c xen:///system domstate deb-1 --reason
vmcloner delete deb --yes
vmcloner template delete deb
"""


def test_the_disk_s_own_kernel_boots_as_pv_guest():
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-test-", dir="/var/tmp"))
    try:
        (folder / "vmcloner.toml").write_text(f'[hosts.local]\nstate = "{folder}/state"\n')
        build = [VMCLONER, "--config", folder / "vmcloner.toml", "image", "build"]
        subprocess.run([*build, "debian-12-built"], check=True, stdin=subprocess.DEVNULL)
        (disk,) = (folder / "state").rglob("disk.raw")
        with subprocess.Popen(
            ["tar", "-C", disk.parent, "-cS", disk.name], stdout=subprocess.PIPE
        ) as tar:
            done = subprocess.run(
                [LAB, "xen", "run", "--seconds", "4800", "--", "bash", "-ec", INSIDE],
                stdin=tar.stdout,
                capture_output=True,
                text=True,
                check=False,
            )
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    said, verdicts, rows = map(json.loads, done.stdout.splitlines())
    lines = [row["stdout"].splitlines() for row in said]
    names = [f"deb-{index}" for index in range(1, COUNT + 1)]
    assert [line[0] for line in lines] == names
    assert len({line[1] for line in lines}) == COUNT
    for _, _, hypervisor, cmdline in lines:
        assert hypervisor == "xen"
        assert "net.ifnames=0" in cmdline.split()  # said by the disk's menu
        assert "systemd.default_timeout_start_sec=900" in cmdline.split()  # by the template
    assert {row["ip"] for row in rows} == {f"10.9.0.{70 + n}" for n in range(1, COUNT + 1)}
    found = {row["fact"]: (row["read"], row["distinct"]) for row in verdicts}
    # Static addresses: no client of DHCP. A generation id is QEMU's.
    expected = dict.fromkeys(FACTS, (COUNT, COUNT)) | {"client_id": (0, 0), "generation_id": (0, 0)}
    assert found == expected
    assert "shut off (shutdown)" in done.stderr, "by itself, not destroyed"
