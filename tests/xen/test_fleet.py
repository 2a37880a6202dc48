"""Fleets on a real Xen host, by one command each: made, started by pygrub, stopped, gone."""

import json
import re
import shutil

import pytest

from tests.xen.conftest import GUEST, TEMPLATE, VIRSH, Site, alter, last_lines, output

pytestmark = [pytest.mark.xen, pytest.mark.timeout(1500)]


MENU = """set default=0
set timeout=0
menuentry 'upgraded' {
    linux /boot/vmlinuz-new root=/dev/xvda ro console=hvc0 generation=2
    initrd /boot/initrd.img
}
"""


DIRECT = (
    f'[kernel]\npath = "{GUEST}/vmlinuz"\ninitrd = "{GUEST}/initrd.img"\n'
    'cmdline = "console=hvc0 host={{ name }}"\n'
)


def live(site: Site, fleet: str, count: int, template: str = "guest", memory: str = "32") -> None:
    """Make clones, see each say its own name, and stop them as their guests stop.

    :param memory: in MiB, a pattern.
    """
    names = [f"{fleet}-{index}" for index in range(1, count + 1)]
    site.create(fleet, template, count, "--wait", "--timeout", str(300 + 120 * count))
    assert site.states(fleet) == dict.fromkeys(names, "running")
    for name, line in last_lines(names, site).items():
        assert f"vmcloner-ready name={name} " in line
    listed = output("xl", "list")
    for name in names:
        assert re.search(rf"^{name} +\d+ +{memory} +1 ", listed, re.MULTILINE)
    site.run("stop", fleet, "--timeout", "600")
    assert site.states(fleet) == dict.fromkeys(names, "stopped")
    for name in names:
        reason = output(*VIRSH, "domstate", name, "--reason")
        assert "shut off (shutdown)" in reason, "by itself, not destroyed"


def test_three_clones(site: Site, fleet: str) -> None:
    live(site, fleet, 3)
    # A kernel of another name, and a menu that names it: what an upgrade inside leaves.
    new = site.folder / "grub.cfg"
    new.write_text(MENU)
    alter(
        site.disk(f"{fleet}-1"),
        f"write {GUEST}/vmlinuz /boot/vmlinuz-new",
        "rm /boot/vmlinuz",
        "rm /boot/grub/grub.cfg",
        f"write {new} /boot/grub/grub.cfg",
    )
    (shown,) = json.loads(site.run("boot", "resolve", f"{fleet}-1", "-f", "json"))
    assert (shown["provider"], shown["kernel"]) == ("pygrub", "/boot/vmlinuz-new on the disk")
    assert shown["cmdline"].endswith("generation=2")
    site.run("start", f"{fleet}-1", "--wait", "--timeout", "300")
    assert "generation=2" in site.run("console", f"{fleet}-1", "--log")


FAULTS = {
    2: (("rm /boot/grub/grub.cfg", "write /etc/services /boot/grub/grub.cfg"), "no file system"),
    3: (("rm /boot/vmlinuz",), "/boot/vmlinuz does not exist on the disk"),
    4: (("rm /boot/initrd.img", "symlink /boot/initrd.img /etc/shadow"), "/boot/initrd.img"),
    5: (("set_inode_field /boot/initrd.img size 1073741824",), "ramdisk is too large"),
}


def test_what_guests_do_to_their_boot_menus_stays_with_them(site: Site, fleet: str) -> None:
    """A menu that is none, no kernel, a link to a file of the host, an initrd of 1 GiB."""
    site.create(fleet, "guest", 6)
    for index, (requests, _) in FAULTS.items():
        alter(site.disk(f"{fleet}-{index}"), *requests)
    free = shutil.disk_usage("/var/lib/xen").free
    site.run("start", fleet, "-f", "json", code=10)
    states = site.states(fleet)
    for index in range(1, 7):
        expected = "stopped" if index in FAULTS else "running"
        assert states[f"{fleet}-{index}"] == expected
    for index, (_, reason) in FAULTS.items():  # one by one: each with its own reason
        said = site.run("start", f"{fleet}-{index}", code=10)
        assert re.search(rf"{fleet}-{index}.*can't start.*{re.escape(reason)}", said), said
    assert free - shutil.disk_usage("/var/lib/xen").free < 32 * 1024**2


def test_memory_is_checked_before(site: Site, fleet: str) -> None:
    said = site.create(fleet, "guest", 500, "--start", code=7)
    assert re.search(r"starting 500 clones takes .* would fit; Domain-0 has 2 GiB and keeps", said)
    assert site.run("list", "-f", "value").find(fleet) == -1


@pytest.mark.parametrize(
    "name", ["Domain-0", "domain-0", "0", "0" * 8 + "-0000" * 3 + "-" + "0" * 12]
)
def test_domain_0_is_no_clone(site: Site, name: str) -> None:
    for words in (("stop", name), ("delete", name, "--yes"), ("start", name), ("show", name)):
        assert site.run(*words, code=4 if words[0] == "show" else 3)
    assert site.run("create", name, "--template", "guest", code=3)
    assert "Domain-0" in output("xl", "list")


def test_a_guest_of_a_kernel_of_the_host(site: Site, fleet: str) -> None:
    site.template("direct", TEMPLATE.replace("pygrub", "kernel") + DIRECT)
    site.create(fleet, "direct", 1, "--wait", "--timeout", "300")
    config = site.run("show", f"{fleet}-1", "--show-xl")
    assert f'kernel = "{GUEST}/vmlinuz"' in config
    assert f'name = "{fleet}-1"' in config
    shown = json.loads(site.run("show", f"{fleet}-1", "-f", "json"))
    assert shown["console_log"] == f"/var/log/xen/console/guest-{fleet}-1.log"
    site.run("delete", fleet, "--yes")
    site.run("template", "delete", "direct")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "boot"), [("pvh", "pygrub"), ("hvm", "kernel")])
def test_guests_on_the_processor_s_virtualization(
    site: Site, fleet: str, kind: str, boot: str
) -> None:
    text = TEMPLATE.replace("pygrub", boot).replace("32MiB", "64MiB")
    if boot == "kernel":
        text += DIRECT
    site.template(kind, f'{text}[domain]\ntype = "{kind}"\n')
    site.create(fleet, kind, 1, "--wait", "--timeout", "600")
    name = f"{fleet}-1"
    ((_, line),) = last_lines([name], site).items()
    assert f"vmcloner-ready name={name} " in line
    (domain,) = json.loads(output("xl", "list", "-l", name))
    assert domain["config"]["c_info"]["type"] == kind
    site.run("stop", fleet, "--timeout", "120")
    assert "shut off (shutdown)" in output(*VIRSH, "domstate", name, "--reason")
    site.run("delete", fleet, "--yes")
    site.run("template", "delete", kind)


@pytest.mark.slow
def test_the_template_for_xen_that_is_shipped(site: Site, fleet: str) -> None:
    """Of Debian's kernel. On the lab's bridge, where nothing else runs."""
    site.template("tiny-xen", 'extends = "tiny-xen"\n[[nics]]\nkind = "bridge"\nsource = "xenbr0"')
    live(site, fleet, 1, "tiny-xen", r"\d+")
    site.run("delete", fleet, "--yes")
    site.run("template", "delete", "tiny-xen")


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_twenty_clones(site: Site, fleet: str) -> None:
    live(site, fleet, 20)
