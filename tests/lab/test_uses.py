"""The lab itself, used as people and other tests use it; whatever ends a use leaves nothing."""

import os
import secrets
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from contrib.lab import cache, labs

TOP = Path(__file__).parents[2]
LAB = TOP / "contrib/lab/lab"

pytestmark = [pytest.mark.guests, pytest.mark.timeout(1800)]  # the first builds it


@pytest.fixture(scope="module", autouse=True)
def built():
    subprocess.run([LAB, "kvm", "build"], check=True, timeout=1800)


@pytest.fixture
def mark():
    """Words for a lab's command line by which its processes are found."""
    return f"lab-test-{secrets.token_hex(4)}"


def use(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([LAB, *words], input=stdin, capture_output=True, check=False, timeout=300)


def mine() -> list[Path]:
    """Return the folders of labs that run from this checkout for one use."""
    return [
        path
        for path, record in labs.running()
        if record.checkout == str(TOP) and not record.lasting
    ]


def eventually(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_input_output_errors_and_exit_code_pass():
    done = use("kvm", "run", "--", "sh", "-c", "cat; echo err >&2; exit 7", stdin=b"\0in\n")
    assert (done.returncode, done.stdout) == (7, b"\0in\n")
    assert done.stderr.endswith(b"err\n")


def test_arguments_pass_as_they_are():
    done = use("kvm", "run", "--", "printf", "%s.", "a b", "$HOME", "'", "--seconds", "")
    assert done.stdout == b"a b.$HOME.'.--seconds.."
    done = use("kvm", "run", "--env", "A=$HOME '", "--", "printenv", "A")
    assert done.stdout == b"$HOME '\n"


def test_the_clock_is_right():
    before = int(time.time())
    done = use("kvm", "run", "--", "date", "+%s")
    assert before <= int(done.stdout) <= time.time() + 1


def test_each_use_starts_from_pristine_disks():
    spoil = (
        "touch /root/spoilt; lvcreate -qq --size 4m --name spoilt vg; dd if=/etc/passwd of=/dev/vdc"
    )
    assert use("kvm", "run", "--", "sh", "-ec", spoil).returncode == 0
    done = use(
        "kvm", "run", "--", "sh", "-c", "ls /root; lvs --noheadings -o name; wipefs /dev/vdc"
    )
    assert (done.returncode, done.stdout.split()) == (0, [b"pool"])


def test_a_command_has_its_time():
    done = use("kvm", "run", "--seconds", "2", "--", "sleep", "1000")
    assert done.returncode == 124
    assert b"lab: sleep: no end after 2 s" in done.stderr
    assert mine() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_a_use_leaves_nothing(number):
    with subprocess.Popen(
        [LAB, "kvm", "run", "--", "sh", "-c", "echo up; exec sleep 1000"],
        stdout=subprocess.PIPE,
        process_group=0,
    ) as process:
        assert process.stdout.readline() == b"up\n"
        (folder,) = mine()
        machine = next(record.pid for path, record in labs.running() if path == folder)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        process.wait(60)
    assert process.returncode in {130, 143, -9}
    eventually(lambda: not mine())
    eventually(lambda: not Path(f"/proc/{machine}/exe").exists())
    if number == signal.SIGKILL:
        assert folder.exists()
        use("status")
        with cache.locked(folder.parent / "lock"):
            labs.sweep()
    assert not folder.exists()


def test_one_that_lasts():
    use("kvm", "down")
    try:
        assert b"  up  " in use("kvm", "up", "--seconds", "600").stdout
        assert use("kvm", "run", "--", "touch", "/root/kept").returncode == 0
        assert use("kvm", "run", "--", "ls", "/root").stdout == b"kept\n"
        assert use("kvm", "run", "--seconds", "2", "--", "sleep", "4321").returncode == 124
        assert use("kvm", "run", "--", "pgrep", "-f", "sleep 4321").returncode == 1
        assert b"  up  " in use("status").stdout
    finally:
        assert b" up " not in use("kvm", "down").stdout.replace(b"xen  up", b"")
    assert labs.attach(labs.MODES["kvm"]) is None


def test_tests_bring_their_report_back(tmp_path):
    report = tmp_path / "report.xml"
    chosen = "tests/lab/test_inside.py::test_vmcloner_and_what_tiny_is_made_of"
    done = use("kvm", "test", "--junit", str(report), "--", chosen)
    assert done.returncode == 0, done.stdout
    assert [case.get("name") for case in ET.parse(report).iter("testcase")] == [
        "test_vmcloner_and_what_tiny_is_made_of"
    ]
    done = use("kvm", "test", "--junit", str(report), "--", "tests/lab", "-k", "no_such_test")
    assert done.returncode == 5
    done = use("kvm", "test", "--junit", str(report), "--", "--no-such-option")
    assert done.returncode == 4
    assert not report.exists()
