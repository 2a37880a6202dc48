"""A guest with sshd that boots in seconds: the template tiny, and this host's own sshd."""

import re
import subprocess
from pathlib import Path

from tests.e2e.conftest import Site
from vmcloner_tiny import initramfs

SSHD = "/usr/sbin/sshd"
START = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module"; done </modules/kvm
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
tr -d '\\000' </dev/vdb | sed -n '/^# seed$/,/^# end$/p' >/etc/seed
. /etc/seed
touch /run/cloud-init/result.json  # what cloud-init would do is done
/usr/sbin/sshd -f /etc/ssh/config
umount /sys /proc /dev
exec /init
"""
CONFIG = """
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
"""
SEED = """#!/bin/sh
# seed
umask 077
cat >/etc/ssh/host_key <<'END'
{{ host_key }}
END
echo '{{ authorized_keys | join("\\n") }}' >/etc/ssh/authorized
# end
"""
TEMPLATE = """
extends = "tiny"
memory = "160MiB"
ready = "ssh"
[kernel]
path = "{built}/vmlinuz"
initrd = "{folder}/sshd.img"
cmdline = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check lpj=4000000 rdinit=/start host={{{{ name }}}}"
[[nics]]
kind = "user"
forward = 22
[ssh]
key = "{folder}/key"
[identity]
provider = "cloud-init"
authorized_keys = ["{folder}/key.pub"]
user_data = "user-data.j2"
"""  # noqa: E501 - as long as it is


def make_template(site: Site, name: str, folder: Path | None = None) -> None:
    """Write a template of such guests into a site, in which tiny has been imported.

    :param folder: of the template, if not the site's.
    """
    folder = folder or site.folder / "templates"
    (built,) = (path.parent for path in site.folder.rglob("tiny/initrd.img"))
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / "key"],
        check=True,
        timeout=60,
    )
    first = (built / "initrd.img").read_bytes()
    padding = bytes(-len(first) % 4)
    (folder / "sshd.img").write_bytes(first + padding + initramfs.pack(_entries()))
    (folder / "user-data.j2").write_text(SEED)
    (folder / f"{name}.toml").write_text(TEMPLATE.format(built=built, folder=folder))


def _entries() -> list[initramfs.Entry]:
    """Return sshd, what it is linked with, and its settings."""
    helpers = [str(path) for path in Path("/usr/lib/openssh").glob("sshd-*")]
    programs = sorted({SSHD, *helpers, *_linked(SSHD, *helpers)})
    folders = {parent for path in programs for parent in Path(path).parents[:-1]}
    folders |= {Path("/etc/ssh"), Path("/run"), Path("/run/sshd"), Path("/run/cloud-init")}
    passwd = "root:*:0:0::/root:/bin/sh\nsshd:*:100:65534::/run/sshd:/bin/false\n"
    return [
        *(initramfs.folder(str(path)[1:]) for path in sorted(folders)),
        *(initramfs.executable(path[1:], Path(path).read_bytes()) for path in programs),
        initramfs.executable("start", START.encode()),
        initramfs.file("etc/passwd", passwd.encode()),
        initramfs.file("etc/group", b"root:*:0:\nnogroup:*:65534:\n"),
        initramfs.file("etc/ssh/config", CONFIG.encode()),
    ]


def _linked(*programs: str) -> list[str]:
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    return re.findall(r"(/\S+) \(0x", said)
