"""Firmware variables and TPMs of clones, on the real libvirtd with OVMF and swtpm."""

import re
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.libvirt

NVRAM = Path("/var/lib/libvirt/qemu/nvram")
TPMS = Path("/var/lib/libvirt/swtpm")
LOGS = Path("/var/log/swtpm/libvirt/qemu")
FRESH = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
ENROLLED = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
SNAKEOIL = Path("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd")
OWN = b"SnakeOil"
GUIDE = Path(__file__).parents[2] / "docs/templates.md"
MARK = b"written before the reset"
TPM = '<tpm model="tpm-crb"><backend type="emulator" version="2.0"/></tpm>'
TEMPLATE = """
hypervisors = ["kvm"]
memory = "128MiB"
[image]
path = "image.raw"
[domain]
{firmware}
devices = '{tpm}'
"""


def guides():
    """Return the domain templates in the guide."""
    return re.findall(r"(?s)```xml\n(\{% extends.*?)```", GUIDE.read_text())


def virsh(*words):
    argv = ["virsh", "-q", "-c", "qemu:///system", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


def template(site, name, firmware):
    text = TEMPLATE.format(firmware=firmware, tpm=TPM)
    (site.folder / "templates" / f"{name}.toml").write_text(text)
    return name


def variables(clone):
    return NVRAM / f"{clone}_VARS.fd"


def tpm(clone):
    """Return the folder of a clone's TPM, which libvirt names by the domain's UUID."""
    return TPMS / virsh("domuuid", clone).strip()


def endorsement(clone):
    """Return the state that a TPM was made with; it holds keys, so no two are equal."""
    (file,) = tpm(clone).glob("tpm2/*.permall")
    return file.read_bytes()


def boot(site, *clones):
    """Start clones, and wait until their firmware wrote a variable of its own."""
    before = {clone: FRESH.read_bytes() for clone in clones}
    site.run("start", *clones)
    deadline = time.monotonic() + 120
    while any(variables(clone).read_bytes() == text for clone, text in before.items()):
        assert time.monotonic() < deadline, "the firmware wrote no variables"
        time.sleep(0.5)


def mark(clone):
    """Write into the state of a clone that is off, as a guest that was broken into may have."""
    with variables(clone).open("r+b") as file:
        file.seek(-len(MARK), 2)
        file.write(MARK)
    (tpm(clone) / "tpm2" / "marked").write_bytes(MARK)


def is_marked(clone):
    files = [variables(clone), *tpm(clone).rglob("*")]
    return any(MARK in file.read_bytes() for file in files if file.is_file())


def left(site):
    """Return what is left of a site's clones in the folders of libvirt and swtpm."""
    return [file for folder in (NVRAM, LOGS) for file in folder.glob(f"{site.prefix}*")]


@pytest.mark.timeout(600)
def test_state_is_each_clones_own_and_ends_with_reset_and_delete(site):
    web = site.fleet("web")
    one, two = f"{web}-1", f"{web}-2"
    site.run("create", web, "-t", template(site, "efi", 'firmware = "efi"'), "-n", "2")
    boot(site, one, two)
    first, other = endorsement(one), endorsement(two)
    assert first != other
    site.run("stop", web, "--kill")
    for clone in (one, two):
        mark(clone)
        assert is_marked(clone)
    site.run("reset", one)
    assert not variables(one).exists()
    assert not tpm(one).exists()
    boot(site, one)
    assert not is_marked(one)
    assert endorsement(one) not in (first, other)
    # Clones that are not named keep theirs, also over a start.
    site.run("start", two)
    assert is_marked(two)
    assert endorsement(two) == other
    folders = [tpm(one), tpm(two)]
    assert len(left(site)) == 4  # so that the next check of them can fail
    site.run("delete", web, "--yes")
    assert left(site) == []
    assert not any(folder.exists() for folder in folders)


@pytest.mark.timeout(600)
def test_secure_boot_as_the_guide_has_it(site):
    web = site.fleet("web")
    (text,) = (each for each in guides() if "secure-boot" in each)
    (site.folder / "templates" / "secure.xml.j2").write_text(text)
    name = template(site, "secure", 'xml = "secure.xml.j2"')
    site.run("create", web, "-t", name, "-n", "2", "--start")
    clone, other = f"{web}-1", f"{web}-2"
    # Each has the keys that the firmware's vendor enrolled, in a file of its own.
    certificate = b"Microsoft Corporation UEFI CA 2011"
    assert certificate in ENROLLED.read_bytes()
    assert certificate in variables(clone).read_bytes()
    assert certificate in variables(other).read_bytes()
    assert not variables(clone).samefile(variables(other))
    loader = re.search(r"<loader[^>]*secure='yes'[^>]*>.*secboot|\.ms\.", virsh("dumpxml", clone))
    assert loader is not None
    site.run("stop", web, "--kill")
    mark(clone)
    site.run("reset", web)
    assert not variables(clone).exists()
    assert not tpm(clone).exists()
    site.run("start", web)
    assert not is_marked(clone)
    assert certificate in variables(clone).read_bytes()  # they are there again
    folder = tpm(clone)
    site.run("delete", web, "--yes")
    assert left(site) == []
    assert not folder.exists()


@pytest.mark.timeout(600)
def test_secure_boot_with_a_key_of_ones_own_as_the_guide_has_it(site):
    """The key is Debian's snake oil: a key pair whose private part everybody has."""
    web = site.fleet("web")
    (text,) = (each for each in guides() if "ours_VARS.fd" in each)
    text = text.replace("/srv/keys/ours_VARS.fd", str(SNAKEOIL))
    (site.folder / "templates" / "ours.xml.j2").write_text(text)
    name = template(site, "ours", 'xml = "ours.xml.j2"')
    site.run("template", "check", name)
    site.run("create", web, "-t", name, "-n", "2", "--start")
    before = SNAKEOIL.read_bytes()
    for _ in range(2):
        for clone in (f"{web}-1", f"{web}-2"):
            assert OWN in variables(clone).read_bytes()
            assert b"Microsoft" not in variables(clone).read_bytes()
        site.run("stop", web, "--kill")
        mark(f"{web}-1")
        site.run("reset", web)
        assert not variables(f"{web}-1").exists()
        site.run("start", web)
    site.run("delete", web, "--yes")
    assert left(site) == []
    assert SNAKEOIL.read_bytes() == before


@pytest.mark.timeout(600)
def test_variables_in_a_file_of_others_are_kept(site):
    """A domain XML of one's own names a file that all clones of a template would write to."""
    web = site.fleet("web")
    file = site.folder / "all_VARS.fd"
    file.write_bytes(FRESH.read_bytes())
    (site.folder / "templates" / "foreign.xml.j2").write_text(
        '{% extends "domain.xml.j2" %}{% block os %}<os><type machine="{{ machine }}">hvm</type>'
        '<loader readonly="yes" type="pflash">/usr/share/OVMF/OVMF_CODE_4M.fd</loader>'
        f"<nvram>{file}</nvram></os>{{% endblock %}}"
    )
    name = template(site, "foreign", 'xml = "foreign.xml.j2"')
    site.run("create", web, "-t", name, "--start")
    site.run("stop", web, "--kill")
    site.run("reset", web)
    assert file.exists()
    site.run("start", web)
    site.run("delete", web, "--yes")
    assert file.stat().st_size == FRESH.stat().st_size
    assert left(site) == []


@pytest.mark.timeout(600)
def test_a_tpm_that_outlived_its_domain(site):
    """Another tool removed the domain and kept it: a new clone of that name has a new one."""
    web = site.fleet("web")
    clone, efi = f"{web}-1", template(site, "efi", 'firmware = "efi"')
    site.run("create", web, "-t", efi, "--start")
    site.run("stop", web, "--kill")
    mark(clone)
    old, folder = endorsement(clone), tpm(clone)
    virsh("undefine", clone, "--nvram", "--keep-tpm")
    assert folder.exists()
    site.run("delete", web, "--yes")
    site.run("create", web, "-t", efi, "--start")
    assert tpm(clone) == folder
    assert endorsement(clone) != old
    assert not is_marked(clone)
    site.run("delete", web, "--yes")
    assert not folder.exists()


STRANGER = """
<domain type='qemu'><name>{name}</name><memory>32768</memory>
<os><type machine='q35'>hvm</type></os></domain>
"""
QEMU = NVRAM.parent
QEMU_LOGS = Path("/var/log/libvirt/qemu")


@pytest.mark.timeout(600)
def test_what_a_domain_left_goes_with_its_clone(site):
    """Another tool undefined it, or a libvirtd was killed: its parts are the clone's all the same.

    Those of another domain that has the name since are not.
    """
    web = site.fleet("web")
    one, two = f"{web}-1", f"{web}-2"
    site.run("create", web, "-t", template(site, "efi", 'firmware = "efi"'), "-n", "2", "--start")
    site.run("stop", web, "--kill")
    folders = {clone: tpm(clone) for clone in (one, two)}
    saved = {clone: QEMU / "save" / f"{clone}.save" for clone in (one, two)}
    described = {clone: QEMU / "snapshot" / clone for clone in (one, two)}
    for clone in (one, two):
        assert (QEMU_LOGS / f"{clone}.log").exists()
        virsh("undefine", clone, "--keep-nvram", "--keep-tpm")
    parts = {c: (variables(c), folders[c], saved[c], described[c]) for c in (one, two)}
    stranger = site.folder / "stranger.xml"
    stranger.write_text(STRANGER.format(name=two))
    virsh("define", str(stranger))
    for clone in (one, two):
        saved[clone].write_bytes(MARK)
        described[clone].mkdir()
        (described[clone] / "s1.xml").write_bytes(MARK)
    try:
        assert [p for clone in (one, two) for p in parts[clone] if not p.exists()] == []
        site.run("delete", one, "--yes")
        with site.popen("delete", two, "--yes") as process:
            process.communicate(timeout=200)
        assert [part for part in parts[one] if part.exists()] == []
        assert not list(QEMU_LOGS.glob(f"{one}.log*"))
        kept = [part for part in parts[two] if part != folders[two]]
        assert [part for part in kept if not part.exists()] == []
    finally:
        saved[two].unlink(missing_ok=True)
        virsh("undefine", two)
        site.run("delete", web, "--yes", "--missing-ok")
        for file in (described[two] / "s1.xml", variables(two), QEMU_LOGS / f"{two}.log"):
            file.unlink(missing_ok=True)
        if described[two].exists():
            described[two].rmdir()
    assert not folders[two].exists()
    assert left(site) == []


def test_saved_memory_that_outlived_its_domain(site):
    """A new domain of that name and UUID would continue it, on another disk."""
    web = site.fleet("web")
    clone = f"{web}-1"
    site.run("create", web, "-t", "plain", "--start")
    site.run("save", clone)
    image = QEMU / "save" / f"{clone}.save"
    kept = image.read_bytes()
    virsh("undefine", clone, "--managed-save")
    image.write_bytes(kept)
    site.run("create", web, "-t", "plain")
    assert not image.exists()
    assert [row["state"] for row in site.rows(web)] == ["stopped"]
