"""Real machines on the real libvirtd, by the command as a user types it."""

import json
import random
import re
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.libvirt


@pytest.mark.timeout(900)
def test_a_fleet_of_tiny_machines(site):
    """Each boots, says its own name, and goes without a trace."""
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "-n", "10", "--start", "--wait", timeout=600)
    rows = site.rows(web)
    assert [row["name"] for row in rows] == [f"{web}-{n}" for n in range(1, 11)]
    assert {row["state"] for row in rows} == {"running"}
    assert len({row["mac"] for row in rows}) == 10
    assert set(rows[0]) == {
        "name", "fleet", "index", "state", "template", "hypervisor",
        "storage", "host", "mac", "ip", "created", "volumes", "reason", "owner", "expires",
        "problem",
    }  # fmt: skip
    for row in rows:
        log = site.run("console", row["name"], "--log")
        (line,) = re.findall(r"vmcloner-ready .*", log)
        assert f"name={row['name']} " in line
        assert f"mac={row['mac']}" in line
    site.run("stop", f"{web}-[1-2]", "--timeout", "60")
    site.run("stop", f"{web}-3", "--kill")
    states = [row["state"] for row in site.rows(web)]
    assert states == ["stopped"] * 3 + ["running"] * 7
    site.run("start", web, "-n", "1", "--wait")
    assert [row["state"] for row in site.rows(web)][:3] == ["running", "stopped", "stopped"]
    site.run("delete", web, "--yes")
    assert site.rows() == []
    assert site.remains() == []


@pytest.mark.parametrize("seed", range(6))
def test_kill_9_in_mid_create(site, seed):
    """The same command again makes it fifty: none twice, nothing else."""
    web = site.fleet("web")
    command = ("create", web, "-t", "plain", "-n", "50")
    site.run("template", "import", "plain")
    with site.popen(*command) as process:
        # From before its first clone to after its last: a create of 50 takes about a second.
        deadline = time.monotonic() + random.Random(seed).uniform(0.2, 1.5)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.communicate()
    site.run(*command)
    rows = site.rows(web)
    assert [row["index"] for row in rows] == list(range(1, 51))
    assert {row["state"] for row in rows} == {"stopped"}
    defined = [name for name in site.remains() if re.fullmatch(rf"{web}-\d+", name)]
    assert len(defined) == 50
    site.run("delete", web, "--yes")
    assert site.remains() == []
    assert list((site.folder / "state" / "pool" / ".tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "options"), [(signal.SIGTERM, ()), (signal.SIGHUP, ("-f", "json"))]
)
def test_a_create_that_is_ended_says_what_it_did(site, number, options):
    """As by a CI system that cancels a job: its output is a pipe."""
    web = site.fleet("web")
    command = ("create", web, "-t", "plain", "-n", "12", "--start")
    site.run("template", "import", "plain")
    with site.popen(*command, *options) as process:
        while not list((site.folder / "state" / "pool" / "volumes").glob(f"{web}-2-*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 130
    (said,) = re.findall(r"^vmcloner: create: stopped with (\d+) of 12 clones done.*", err, re.M)
    assert int(said) < 12
    assert "(run the same command again)" in err
    if options:
        assert sum(row["status"] == "ok" for row in json.loads(out)) == int(said)
    site.run(*command)
    assert [row["state"] for row in site.rows(web)] == ["running"] * 12


@pytest.mark.parametrize("seed", range(2))
def test_kill_9_in_mid_reset(site, seed):
    """No clone is lost, and the same command again makes all of them new."""
    web = site.fleet("web")
    site.run("create", web, "-t", "plain", "-n", "30")
    before = site.rows(web)
    volumes = sorted((site.folder / "state" / "pool" / "volumes").glob(f"{web}-*"))
    for volume in volumes:
        write = ["qemu-io", "-c", "write -P 7 0 4096", str(volume)]
        subprocess.run(write, check=True, timeout=60, capture_output=True)
    with site.popen("reset", web) as process:
        deadline = time.monotonic() + random.Random(seed).uniform(0.3, 1.2)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.communicate()
    assert [row["state"] for row in site.rows(web)] == ["stopped"] * 30
    site.run("reset", web)
    assert site.rows(web) == before
    for volume in volumes:
        image = site.folder / "templates" / "image.raw"
        compare = ["qemu-img", "compare", "-q", "-F", "raw", str(volume), str(image)]
        subprocess.run(compare, check=True, timeout=60)


@pytest.mark.timeout(600)
def test_reset_machines_boot_for_the_first_time_again(site):
    """The disk of a tiny machine counts its boots."""
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "-n", "2", "--wait", timeout=300)
    site.run("restart", f"{web}-1", "--kill", "--wait", timeout=300)
    assert "boots=2" in site.run("console", f"{web}-1", "--log")
    site.run("stop", f"{web}-2", "--kill")
    before = site.rows(web)
    site.run("reset", web, "--wait", "--for", "running")
    assert [row["state"] for row in site.rows(web)] == ["running", "running"]
    site.run("wait", web, timeout=300)
    for row, former in zip(site.rows(web), before, strict=True):
        assert (row["name"], row["mac"]) == (former["name"], former["mac"])
        assert "boots=1" in site.run("console", row["name"], "--log")


def test_two_creates_at_once(site):
    web = site.fleet("web")
    both = [site.popen("create", web, "-t", "plain", "-n", "30") for _ in range(2)]
    for process in both:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert len(site.rows(web)) == 30


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(site):
    web = site.fleet("web")
    site.run("template", "import", "plain")
    command = ("create", web, "-t", "plain", "-n", "400")
    with site.popen(*command) as process:
        volumes = site.folder / "state" / "pool" / "volumes"
        while process.poll() is None and not any(volumes.glob(f"{web}-*")):
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "again" in stderr
    assert 0 < len(site.rows(web)) < 400
    site.run(*command, timeout=300)
    assert len(site.rows(web)) == 400


def test_ctrl_c_ends_what_a_driver_waits_for(site):
    """This guest doesn't shut down: it has no system."""
    web = site.fleet("web")
    site.run("create", web, "-t", "plain", "-n", "2", "--start")
    runs = site.folder / "state" / "runs"
    before = set(runs.iterdir())
    with site.popen("stop", web, "--timeout", "190") as process:
        while process.poll() is None and not any(
            "shutdown" in log.read_text() for log in {*runs.iterdir()} - before
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 130, stderr
    assert [row["state"] for row in site.rows(web)] == ["running"] * 2
    site.run("stop", web, "--kill")


def test_a_foreign_domain_is_never_touched(site):
    web = site.fleet("web")
    xml = (
        f"<domain type='qemu'><name>{web}-2</name><memory>32768</memory>"
        "<os><type>hvm</type></os></domain>"
    )
    file = site.folder / "foreign.xml"
    file.write_text(xml)
    virsh = ["virsh", "-q", "-c", "qemu:///system"]
    subprocess.run([*virsh, "define", str(file)], check=True, timeout=60)
    try:
        error = site.run("create", web, "-t", "plain", "-n", "3", code=5)
        assert f"{web}-2" in error
        assert site.rows() == []
        site.run("delete", web, "--yes", "--missing-ok")
        subprocess.run([*virsh, "dominfo", f"{web}-2"], check=True, timeout=60)
    finally:
        subprocess.run([*virsh, "undefine", f"{web}-2"], check=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("create", "w", "-t", "tyni"), 4, "did you mean 'tiny'"),
        (("create", "w", "-t", "plain", "-e", "kvmm"), 4, "did you mean 'kvm'"),
        (("create", "w", "-t", "plain", "--storage", "file"), 4, "did you mean 'files'"),
        (("create", "../x", "-t", "plain"), 3, "not a fleet name"),
        (("create", "a;b", "-t", "plain"), 3, "not a fleet name"),
        (("create", "<x>", "-t", "plain"), 3, "not a fleet name"),
        (("create", "a\nb", "-t", "plain"), 3, "not a fleet name"),
        (("create", "a" * 61, "-t", "plain", "-n", "10"), 3, "too long with its index"),
        (("create", "w", "-t", "plain", "-n", "0"), 3, "count must be"),
        (("create", "w", "-t", "plain", "-n", "-1"), 3, "count must be"),
        (("create", "w", "-t", "plain", "-n", "1000000"), 3, "count must be"),
        (("create", "w", "-t", "plain", "-n", "many"), 2, "many"),
        (("create", "w", "-t", "plain", "-n", "9999", "--start"), 7, "would fit"),
        (("start", "gone"), 4, "gone"),
        (("list", "gone"), 4, "gone"),
        (("show", "gone-1"), 4, "gone-1"),
        (("template", "show", "gone"), 4, "gone"),
        (("delete", "gone"), 2, "--yes"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_bad_input_gets_one_line(site, words, code, message):
    error = site.run(*words, code=code)
    assert message in error
    if code != 2:
        assert len(error.strip().splitlines()) == 1, error
    assert site.rows() == []


def test_no_libvirtd_says_how_to_start_it(site):
    config = site.folder / "vmcloner.toml"
    text = config.read_text()
    config.write_text(text.replace("qemu:///system", "qemu:///system?socket=/nonexistent"))
    error = site.run("create", site.fleet("web"), "-t", "plain", code=8)
    config.write_text(text)
    assert "libvirtd" in error
    assert len(error.strip().splitlines()) == 1


def test_dry_run_changes_nothing(site):
    web = site.fleet("web")
    plan = json.loads(site.run("create", web, "-t", "plain", "-n", "3", "--dry-run", "-f", "json"))
    assert [row["name"] for row in plan] == [f"{web}-{n}" for n in range(1, 4)]
    assert site.rows() == []
