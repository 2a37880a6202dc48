"""Files that are put into the image before its packages, and configure their installation.

They avoid first-boot work that every clone would repeat: no package lists are fetched, no file
systems checked, no waiting for networks; cloud-init uses one datasource and runs few modules.
"""

from __future__ import annotations

from pathlib import Path

from vmcloner_core import reseeding

ROOT_LABEL = "root"

_FILES: dict[str, str] = {
    "etc/fstab": f"LABEL={ROOT_LABEL} / ext4 errors=remount-ro 0 1\n",
    "etc/hostname": "localhost\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/initramfs-tools/conf.d/vmcloner": "MODULES=list\nCOMPRESS=zstd\nRESUME=none\n",
    # Drivers for the disks of KVM and Xen; all other modules are loaded from the disk.
    "usr/share/initramfs-tools/modules.d/vmcloner": (
        "virtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\nahci\nxen-blkfront\n"
    ),
    "etc/cloud/cloud.cfg.d/90_vmcloner.cfg": """\
datasource_list: [NoCloud, None]
system_info:
  network:
    renderers: [networkd]
cloud_init_modules: [bootcmd, write-files, growpart, resizefs, disk_setup, mounts, set_hostname,
  update_hostname, update_etc_hosts, ca-certs, users-groups, ssh]
cloud_config_modules: [locale, set-passwords, apt-configure, ntp, timezone, runcmd]
cloud_final_modules: [package-update-upgrade-install, write-files-deferred, scripts-vendor,
  scripts-per-once, scripts-per-boot, scripts-per-instance, scripts-user, final-message,
  power-state-change]
""",
    # So that a clone without an identity has a network as well.
    "etc/systemd/network/90-dhcp.network": """\
[Match]
Name=e*

[Network]
DHCP=ipv4
""",
    # A fork of a guest without an agent becomes who its seed disk names, once that is plugged.
    "etc/udev/rules.d/90-vmcloner.rules": (
        f'ACTION=="add", SUBSYSTEM=="block", ATTR{{serial}}=="{reseeding.SERIAL}", TAG+="systemd", '
        'ENV{SYSTEMD_WANTS}+="vmcloner-reseed.service"\n'
    ),
    "etc/systemd/system/vmcloner-reseed.service": """\
[Unit]
Description=Become who the seed disk names
ConditionPathExists=!/dev/virtio-ports/org.qemu.guest_agent.0
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/bin/sh /usr/lib/vmcloner/reseed.sh
StandardOutput=file:/dev/console
StandardError=file:/dev/console
""",
    "etc/systemd/system/vmcloner-wait.service": """\
[Unit]
Description=Say that a seed disk is waited for
ConditionPathExists=!/dev/virtio-ports/org.qemu.guest_agent.0
After=multi-user.target

[Service]
# Not oneshot: it waits for the end of the boot, which waits for its start.
Type=exec
ExecStart=/bin/sh /usr/lib/vmcloner/reseed.sh wait
StandardOutput=file:/dev/console
""",
    "etc/ssh/sshd_config.d/vmcloner.conf": "PasswordAuthentication no\nUseDNS no\n",
}
_MASKED = (
    "apt-daily.service",
    "apt-daily.timer",
    "apt-daily-upgrade.service",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "systemd-networkd-wait-online.service",
)
_ENABLED = {"multi-user.target.wants": ("systemd-networkd.service", "vmcloner-wait.service")}

GRUB_CFG = """\
set default=0
set timeout=0
menuentry 'Debian' {{
  linux {kernel} {arguments}
  initrd {initrd}
}}
"""
"""Read by GRUB in the disk's first track, and from the host by pygrub."""
ARGUMENTS = f"root=LABEL={ROOT_LABEL} rw console=hvc0 console=ttyS0,115200 net.ifnames=0"


def write(folder: Path) -> None:
    """Fill an empty folder."""
    scripts = {"usr/lib/vmcloner/reseed.sh": reseeding.script().decode()}
    for name, text in (_FILES | scripts).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    units = folder / "etc/systemd/system"
    units.mkdir(parents=True, exist_ok=True)
    for unit in _MASKED:
        (units / unit).symlink_to("/dev/null")
    for target, wanted in _ENABLED.items():
        (units / target).mkdir()
        for unit in wanted:
            place = "/etc" if (units / unit).exists() else "/lib"
            (units / target / unit).symlink_to(f"{place}/systemd/system/{unit}")
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        elif not path.is_symlink():
            path.chmod(0o644)
