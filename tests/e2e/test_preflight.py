"""What the host lacks is one line before anything is made, by the command as a user types it."""

import lzma
import subprocess
import tarfile

import pytest

pytestmark = pytest.mark.libvirt
PLAIN = 'hypervisors = ["kvm"]\nmemory = "32MiB"\n{}\n[image]\npath = "image.raw"\n{}\n'


def template(site, name, more="", top=""):
    (site.folder / "templates" / f"{name}.toml").write_text(PLAIN.format(top, more))


@pytest.mark.parametrize(
    ("more", "code", "reason", "way"),
    [
        ('[[nics]]\nkind = "bridge"\nsource = "nobr0"', 4, "no bridge 'nobr0'", "--name nobr0"),
        ('[[nics]]\nkind = "network"\nsource = "nonet"', 4, "no network 'nonet'", "--name nonet"),
        ('[domain]\nmachine = "q36"', 3, "no machine type 'q36'", "did you mean"),
        ("[domain]\ndevices = '<emulator>/no/qemu</emulator>'", 8, "no emulator", "apt-get"),
        (
            "[domain]\ndevices = '<interface type=\"direct\"><source dev=\"eth77\"/></interface>'",
            4, "no network interface 'eth77'", "eth",
        ),
    ],
)  # fmt: skip
def test_one_line_and_nothing_made(site, more, code, reason, way):
    web = site.fleet("web")
    template(site, "lacking", more)
    for words in (("-n", "3"), ("-n", "3", "--start"), ("-n", "3", "--dry-run")):
        said = site.run("create", web, "-t", "lacking", *words, code=code)
        assert said.count("\n") == 1
        assert reason in said
        assert way in said
    with site.popen("template", "check", "lacking", "-f", "value") as process:
        checked, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert reason in checked
    assert site.rows() == []
    assert site.remains() == []


def test_a_network_that_was_stopped_is_found_before_any_start(site):
    web, net = site.fleet("web"), site.fleet("net")
    virsh = ["virsh", "-q", "-c", "qemu:///system"]
    xml = f"<network><name>{net}</name></network>".encode()
    subprocess.run([*virsh, "net-define", "/dev/stdin"], input=xml, check=True, timeout=30)
    try:
        subprocess.run([*virsh, "net-start", net], check=True, timeout=30)
        template(site, "lan", f'[[nics]]\nkind = "network"\nsource = "{net}"')
        site.run("create", web, "-t", "lan", "-n", "3")
        subprocess.run([*virsh, "net-destroy", net], check=True, timeout=30)
        said = site.run("start", web, code=6)
        assert said.count("\n") == 1
        assert f"network '{net}' isn't running (virsh net-start {net})" in said
        assert {row["state"] for row in site.rows(web)} == {"stopped"}
        site.run("delete", web, "--yes")
    finally:
        for command in ("net-destroy", "net-undefine"):
            subprocess.run([*virsh, command, net], check=False, timeout=30, capture_output=True)


def test_a_usb_device_and_a_balloon(site):
    web = site.fleet("web")
    devices = '<input type="tablet" bus="usb"/><memballoon model="virtio"/>'
    template(site, "usb", f"[domain]\ndevices = '{devices}'")
    site.run("template", "check", "usb")
    site.run("create", web, "-t", "usb", "-n", "2", "--start")
    assert {row["state"] for row in site.rows(web)} == {"running"}
    site.run("delete", web, "--yes")


def test_images_as_they_come(site, tmp_path):
    """A qcow2 named .img, an OVA, and one that is compressed."""
    raw, image = tmp_path / "disk.raw", tmp_path / "ubuntu-24.04-server-cloudimg-amd64.img"
    raw.write_bytes(b"a disk ".ljust(1024**2, b"\0"))

    def convert(kind, target, *options):
        words = ["qemu-img", "convert", "-O", kind, *options, str(raw), str(target)]
        subprocess.run(words, check=True, timeout=60)

    convert("qcow2", image)
    disk, ova = tmp_path / "disk.vmdk", tmp_path / "vm.ova"
    convert("vmdk", disk, "-o", "subformat=streamOptimized")
    with tarfile.open(ova, "w") as archive:
        archive.add(disk, "disk.vmdk")
    packed = tmp_path / "vm.ova.xz"
    packed.write_bytes(lzma.compress(ova.read_bytes()))
    template(site, "images")
    for file in (image, ova, packed, disk):
        site.run("template", "import", "images", "--image", str(file))
        (made,) = (site.folder / "state/pool/templates").glob("images*")
        assert made.read_bytes() == raw.read_bytes()
    site.run("template", "delete", "images")
