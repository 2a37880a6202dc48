"""Machines that somebody has changed behind vmcloner's back, on the real libvirtd."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(600)]


def virsh(*words: str) -> str:
    command = ["virsh", "-q", "-c", "qemu:///system", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(site, *words: str, code: int = 10) -> str:
    """Run a command that fails; return all that it printed."""
    with site.popen(*words) as process:
        stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == code, (words, process.returncode, stdout, stderr)
    return stdout + stderr


def volumes(site) -> list[str]:
    folder = site.folder / "state" / "pool" / "volumes"
    return sorted(path.name for path in folder.glob(f"{site.prefix}*"))


def state(site, clone: str) -> tuple[str, str]:
    (row,) = site.rows(clone)
    return row["state"], row["reason"]


def boots(site, clone: str) -> int:
    """Return how often the disk of a tiny machine has booted, as its console says."""
    return int(re.findall(r"boots=(\d+)", site.run("console", clone, "--log"))[-1])


def disk_of(clone: str) -> str:
    return virsh("domblklist", clone).split()[1]


# --- memory ---------------------------------------------------------------------------------------


def test_a_reset_forgets_the_saved_memory(site):
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "-n", "2", "--start", "--wait")
    virsh("managedsave", f"{web}-1")
    assert state(site, f"{web}-1")[0] == "saved"
    assert json.loads(site.run("show", f"{web}-1", "-f", "json"))["state"] == "saved"
    site.run("reset", f"{web}-1")
    assert state(site, f"{web}-1") == ("stopped", "")
    assert re.search(r"Managed save: +no", virsh("dominfo", f"{web}-1"))
    site.run("start", f"{web}-1", "--wait")
    assert boots(site, f"{web}-1") == 1
    virsh("managedsave", f"{web}-1")
    virsh("managedsave", f"{web}-2")
    assert "memory" in site.popen("start", web).communicate(timeout=200)[1]
    assert state(site, f"{web}-2")[0] == "running"
    virsh("managedsave", f"{web}-1")
    site.run("reset", f"{web}-1", "--start", "--wait")
    assert boots(site, f"{web}-1") == 1


def test_a_saved_machine_is_restarted_stopped_and_deleted(site):
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "-n", "3", "--start", "--wait")
    for number in (1, 2, 3):
        virsh("managedsave", f"{web}-{number}")
    site.run("restart", f"{web}-1", "--wait")
    assert boots(site, f"{web}-1") == 2
    site.run("restart", f"{web}-2", "--kill", "--wait")
    assert boots(site, f"{web}-2") == 2
    site.run("stop", f"{web}-3")
    assert state(site, f"{web}-3")[0] == "saved"
    site.run("stop", f"{web}-3", "--kill")
    assert state(site, f"{web}-3")[0] == "stopped"
    virsh("managedsave", f"{web}-2")
    site.run("delete", web, "--yes")
    assert site.remains() == []
    assert not list(Path("/var/lib/libvirt/qemu/save").glob(f"{web}*"))


def test_a_lost_disk_is_not_made_anew_under_a_saved_memory(site):
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "--start", "--wait")
    virsh("managedsave", f"{web}-1")
    Path(disk_of(f"{web}-1")).unlink()
    site.run("create", web, "-t", "tiny")
    assert state(site, f"{web}-1")[0] == "stopped"


# --- disks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [False, True])
def test_a_reset_undoes_external_snapshots(site, running):
    web = site.fleet("web")
    clone = f"{web}-1"
    site.run("create", web, "-t", "tiny", "--start", "--wait")
    before = disk_of(clone)
    if not running:
        site.run("stop", clone, "--kill")
    virsh("snapshot-create-as", clone, "s1", "--disk-only")
    virsh("snapshot-create-as", clone, "s2", "--disk-only")
    assert disk_of(clone) != before
    assert len(volumes(site)) == 3
    site.run("reset", clone, "--start", "--wait")
    assert disk_of(clone) == before
    assert boots(site, clone) == 1
    assert volumes(site) == [f"{clone}-disk0"]
    assert virsh("snapshot-list", clone, "--name").split() == []
    site.run("restart", clone, "--kill", "--wait")
    assert boots(site, clone) == 2


def test_a_delete_removes_snapshots(site):
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "-n", "2")
    virsh("snapshot-create-as", f"{web}-1", "s1", "--disk-only")
    virsh("snapshot-create-as", f"{web}-2", "internal")
    site.run("start", f"{web}-1", "--wait")
    site.run("delete", web, "--yes")
    assert volumes(site) == []
    assert site.remains() == []


def test_internal_snapshots_are_forgotten_by_a_reset(site):
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "--start", "--wait")
    virsh("snapshot-create-as", f"{web}-1", "s1")
    site.run("reset", web)
    assert virsh("snapshot-list", f"{web}-1", "--name").split() == []


@pytest.mark.parametrize("how", ["overlay", "other source", "blockcopy"])
def test_a_disk_that_was_moved_elsewhere_is_named(site, how):
    web = site.fleet("web")
    clone = f"{web}-1"
    site.run("create", web, "-t", "tiny", "--start", "--wait")
    volume = disk_of(clone)
    other = site.folder / f"elsewhere-{how.replace(' ', '-')}.qcow2"
    if how == "blockcopy":
        virsh(
            "blockcopy", clone, "vda", str(other), "--wait", "--pivot", "--transient-job",
            "--format", "qcow2",
        )  # fmt: skip
    else:
        site.run("stop", clone, "--kill")
        below = ["-b", volume, "-F", "qcow2"] if how == "overlay" else []
        size = [] if below else ["64M"]
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", *below, str(other), *size], check=True
        )
        xml = virsh("dumpxml", clone, "--inactive").replace(volume, str(other))
        (site.folder / "changed.xml").write_text(
            re.sub("(?s)<backingStore.*</backingStore>", "", xml)
        )
        virsh("define", str(site.folder / "changed.xml"))
    before = state(site, clone)
    assert str(other) in refused(site, "reset", clone)
    assert state(site, clone) == before
    with site.popen("delete", web, "--yes") as process:
        said = process.communicate(timeout=200)[1]
    assert process.returncode == 0
    assert str(other) in said
    assert other.exists()
    assert volumes(site) == []


# --- others ---------------------------------------------------------------------------------------


def test_a_renamed_domain_keeps_its_disk(site):
    web = site.fleet("web")
    site.run("create", web, "-t", "plain", "-n", "3")
    renamed = f"{web}-renamed"
    virsh("domrename", f"{web}-2", renamed)
    assert state(site, f"{web}-2") == ("stopped", f"its domain was renamed to {renamed!r}")
    for command in (("reset", web), ("delete", f"{web}-2", "--yes"), ("start", f"{web}-2")):
        said = refused(site, *command)
        assert f"virsh domrename {renamed} {web}-2" in said
    assert Path(disk_of(renamed)).exists()
    virsh("undefine", renamed)
    site.run("delete", f"{web}-2", "--yes")
    assert [row["name"] for row in site.rows()] == [f"{web}-1", f"{web}-3"]


@pytest.mark.parametrize("how", ["directly", "as an overlay's base"])
def test_a_disk_that_another_domain_uses_stays(site, how):
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "-n", "2", "--start", "--wait")
    volume = used = disk_of(f"{web}-2")
    if how != "directly":
        used = str(site.folder / "over.qcow2")
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", volume, "-F", "qcow2", used,
             "64M"], check=True,
        )  # fmt: skip
    other = f"{site.prefix}other"
    (site.folder / "other.xml").write_text(
        f"""<domain type="qemu"><name>{other}</name><memory>8192</memory><os><type>hvm</type></os>
        <devices><disk type="file"><driver name="qemu" type="qcow2"/><source file="{used}"/>
        <target dev="vda" bus="virtio"/></disk></devices></domain>"""
    )
    virsh("define", str(site.folder / "other.xml"))
    try:
        for command in (("delete", web, "--yes"), ("reset", f"{web}-2")):
            assert f"domain '{other}'" in refused(site, *command)
            assert [row["name"] for row in site.rows()] == [f"{web}-2"]
            assert state(site, f"{web}-2")[0] == "running"
    finally:
        virsh("undefine", other)
    site.run("delete", web, "--yes")


@pytest.mark.parametrize("who", ["process", "loop device"])
@pytest.mark.parametrize("running", [False, True])
def test_a_disk_that_is_open_elsewhere_stays(site, who, running):
    web = site.fleet("web")
    site.run("create", web, "-t", "plain", "-n", "2", *(["--start"] if running else []))
    volume = disk_of(f"{web}-1")
    if who == "process":
        with Path(volume).open("rb") as stream:
            sleeper = subprocess.Popen(["sleep", "600"], stdin=stream)
        word, end = f"process {sleeper.pid} (sleep)", sleeper.kill
    else:
        made = subprocess.run(
            ["losetup", "-f", "--show", volume], capture_output=True, text=True, check=False
        )
        if made.returncode:
            pytest.skip("no loop devices here")
        word = made.stdout.strip().removeprefix("/dev/")
        end = lambda: subprocess.run(["losetup", "--detach", f"/dev/{word}"], check=True)  # noqa: E731
    try:
        said = refused(site, "delete", web, "--yes")
        assert word in said
        assert [row["name"] for row in site.rows()] == [f"{web}-1"]
        assert state(site, f"{web}-1")[0] == ("running" if running else "stopped")
    finally:
        end()
    time.sleep(0.2)
    site.run("delete", web, "--yes")


@pytest.mark.parametrize("job", ["copy", "pull"])
def test_a_block_job_is_left_to_finish(site, job):
    web = site.fleet("web")
    clone = f"{web}-1"
    site.run("create", web, "-t", "tiny", "--start", "--wait")
    if job == "copy":
        copy = str(site.folder / "copy.qcow2")
        virsh("blockcopy", clone, "vda", copy, "--transient-job", "--wait", "--format", "qcow2")
    else:
        virsh("blockpull", clone, "vda", "--bandwidth", "1024", "--bytes")
    assert f"{job} of vda" in refused(site, "reset", clone)
    assert f"{job} of vda" in refused(site, "delete", web, "--yes")
    assert state(site, clone)[0] == "running"
    virsh("blockjob", clone, "vda", "--abort")


# --- readiness ------------------------------------------------------------------------------------


def test_a_paused_machine_is_not_ready(site):
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "--start", "--wait")
    virsh("suspend", f"{web}-1")
    assert state(site, f"{web}-1") == ("paused", "by user")
    for what in ([], ["--for", "running"]):
        said = refused(site, "wait", web, *what)
        assert f"{web}-1 is paused (by user)" in said
    site.run("start", web, "--wait")


@pytest.fixture
def small(site):
    """A pool on a file system of 4 MiB, as a storage of the site: its folder."""
    folder = site.folder / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "none", folder], check=True)
    settings = site.folder / "vmcloner.toml"
    before = settings.read_text()
    settings.write_text(
        f'{before}\n[hosts.local.storage.small]\ndriver = "files"\npath = "{folder}/pool"\n'
        'clone = "overlay"\n'
    )
    yield folder
    fleets = {str(row["fleet"]) for row in site.rows()}
    if fleets:
        site.run("delete", "--yes", *fleets)
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()
    settings.write_text(before)


def test_a_full_pool_is_said(site, small):
    web = site.fleet("web")
    clone = f"{web}-1"
    site.run("create", web, "-t", "tiny", "--storage", "small")
    stuffing = small / "stuffing"
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={stuffing}", "bs=4k"], capture_output=True, check=False
    )
    assert "vda: pool full (ENOSPC)" in refused(site, "start", web, "--wait", "--timeout", "120")
    assert state(site, clone) == ("paused", "I/O error, vda: pool full (ENOSPC)")
    said = refused(site, "start", web)
    assert f"{clone} is paused again: I/O error, vda: pool full (ENOSPC)" in said
    stuffing.unlink()
    site.run("start", web, "--wait")
    assert boots(site, clone) == 1


def test_a_rotated_console_is_read_whole_and_ready_stays_ready(site):
    """virtlogd's own rotation, brought about by hand: as if the guest had printed megabytes."""
    web = site.fleet("web")
    clone = f"{web}-1"
    site.run("create", web, "-t", "tiny", "--start", "--wait")
    log = Path(json.loads(site.run("show", clone, "-f", "json"))["console_log"])
    said = site.run("console", clone, "--log")
    log.rename(log.with_name(f"{log.name}.0"))
    log.write_bytes(b"more\r\n")
    assert site.run("console", clone, "--log") == f"{said}more\n"
    site.run("create", web, "-t", "tiny", "--wait", "--timeout", "15")
    log.with_name(f"{log.name}.0").unlink()
    site.run("create", web, "-t", "tiny", "--wait", "--timeout", "15")
    site.run("wait", web, "--timeout", "15")
    refused(site, "wait", web, "--for", "console:never said", "--timeout", "3")
    site.run("restart", web, "--kill")
    log.write_bytes(b"")
    refused(site, "wait", f"{web}", "--for", "console:never said", "--timeout", "3")


def test_a_restored_machine_is_ready_if_it_was(site):
    """Its console log is emptied, and it doesn't say again that it is ready."""
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "-n", "2", "--start", "--wait", "--for", "running")
    site.run("wait", f"{web}-1")
    time.sleep(1)
    site.run("wait", f"{web}-2")
    for number in (1, 2):
        virsh("managedsave", f"{web}-{number}")
    site.run("start", f"{web}-1", "--wait", "--timeout", "60")
    site.run("start", f"{web}-2")
    site.run("wait", f"{web}-2", "--timeout", "60")


# --- fleets that are changed ----------------------------------------------------------------------


def test_pause_resume_save_and_restore(site):
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "-n", "2", "--start", "--wait")
    states = []
    for command in ("pause", "pause", "resume", "resume", "pause", "save", "save"):
        site.run(command, web)
        states.append({row["state"] for row in site.rows(web)})
    wanted = ["paused", "paused", "running", "running", "paused", "saved", "saved"]
    assert states == [{state} for state in wanted]
    assert "is saved, not paused" in refused(site, "resume", web)
    assert "can't be paused" in refused(site, "pause", f"{web}-1")
    site.run("restore", web, "--wait", "--timeout", "60")
    assert {row["state"] for row in site.rows(web)} == {"running"}
    site.run("stop", f"{web}-1", "--kill")
    assert "is stopped, not saved" in refused(site, "restore", f"{web}-1")
    site.run("save", f"{web}-2")
    site.run("reset", web, "--wait")
    assert boots(site, f"{web}-2") == 1


def test_sizes_are_set_and_kept(site):
    web = site.fleet("web")
    sizes = ("--memory", "160MiB", "--vcpus", "2", "--disk-size", "80MiB")
    site.run("create", web, "-t", "tiny", "-n", "2", *sizes, "--start", "--wait")
    site.run("create", web, "-t", "tiny", "-n", "2", *sizes)
    site.run("create", web, "-t", "tiny", "-n", "2")
    assert "memory" in refused(site, "create", web, "-t", "tiny", "--memory", "96MiB", code=5)
    clone = f"{web}-1"

    def now() -> tuple[int, int, int]:
        shown = json.loads(site.run("show", clone, "-f", "json"))
        vcpus = int(virsh("vcpucount", clone, "--maximum", "--config"))
        return shown["memory"] // 2**20, vcpus, shown["disks"][0]["size"] // 2**20

    assert now() == (160, 2, 80)
    site.run("set", clone, "--disk-size", "96MiB")
    assert virsh("domblkinfo", clone, "vda").split()[1] == str(96 * 2**20)
    assert "can only grow" in refused(site, "set", clone, "--disk-size", "90MiB")
    with site.popen("set", web, "--memory", "192MiB", "--vcpus", "1") as process:
        assert "next start" in process.communicate(timeout=200)[1]
    site.run("stop", web, "--kill")
    site.run("set", web, "--disk-size", "100MiB")
    assert now() == (192, 1, 100)
    site.run("set", web, "--disk-size", "100MiB", "--memory", "192MiB")
    site.run("reset", web, "--start", "--wait")
    assert now() == (192, 1, 100)
    virsh("destroy", clone)
    virsh("undefine", clone)
    site.run("create", web, "-t", "tiny", "-n", "2")
    assert now() == (192, 1, 100)
    assert "nothing to change" in refused(site, "set", web, code=3)
