"""The lab itself, used as people and other tests use it; whatever ends a use leaves nothing."""

import os
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from contrib.lab import cache, labs

TOP = Path(__file__).parents[2]

pytestmark = [pytest.mark.guests, pytest.mark.timeout(1800)]  # the first builds it


class Checkout:
    """A copy of this checkout: labs belong to one, and others use this one's at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lab = folder / "contrib/lab/lab"
        not_copied = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "results")
        shutil.copytree(TOP, folder, ignore=not_copied)
        (folder / ".venv").symlink_to(TOP / ".venv")
        subprocess.run([self.lab, "kvm", "build"], check=True, timeout=1800)

    def use(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.lab, *words], input=stdin, capture_output=True, check=False, timeout=300
        )

    def running(self) -> list[tuple[Path, labs.Record]]:
        """Return its labs that run, with their folders."""
        return [each for each in labs.running() if each[1].checkout == str(self.folder)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout(tmp_path_factory.mktemp("checkout") / "copy")


@pytest.fixture
def use(checkout):
    return checkout.use


def eventually(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_input_output_errors_and_exit_code_pass(use):
    done = use("kvm", "run", "--", "sh", "-c", "cat; echo err >&2; exit 7", stdin=b"\0in\n")
    assert (done.returncode, done.stdout) == (7, b"\0in\n")
    assert done.stderr.endswith(b"err\n")


def test_arguments_pass_as_they_are(use):
    done = use("kvm", "run", "--", "printf", "%s.", "a b", "$HOME", "'", "--seconds", "")
    assert done.stdout == b"a b.$HOME.'.--seconds.."
    done = use("kvm", "run", "--env", "A=$HOME '", "--", "printenv", "A")
    assert done.stdout == b"$HOME '\n"


def test_the_clock_is_right(use):
    before = int(time.time())
    done = use("kvm", "run", "--", "date", "+%s")
    assert before <= int(done.stdout) <= time.time() + 1


def test_each_use_starts_from_pristine_disks(use):
    spoil = (
        "touch /root/spoilt; lvcreate -qq --size 4m --name spoilt vg; dd if=/etc/passwd of=/dev/vdc"
    )
    assert use("kvm", "run", "--", "sh", "-ec", spoil).returncode == 0
    done = use(
        "kvm", "run", "--", "sh", "-c", "ls /root; lvs --noheadings -o name; wipefs /dev/vdc"
    )
    assert (done.returncode, done.stdout.split()) == (0, [b"pool"])


def test_a_command_has_its_time(checkout, use):
    done = use("kvm", "run", "--seconds", "2", "--", "sleep", "1000")
    assert done.returncode == 124
    assert b"lab: sleep: no end after 2 s" in done.stderr
    assert checkout.running() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_a_use_leaves_nothing(checkout, use, number):
    with subprocess.Popen(
        [checkout.lab, "kvm", "run", "--", "sh", "-c", "echo up; exec sleep 1000"],
        stdout=subprocess.PIPE,
        process_group=0,
    ) as process:
        assert process.stdout.readline() == b"up\n"
        ((folder, record),) = checkout.running()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        process.wait(60)
    assert process.returncode in {130, 143, -9}
    eventually(lambda: not checkout.running())
    eventually(lambda: not Path(f"/proc/{record.pid}/exe").exists())
    if number == signal.SIGKILL:  # whoever starts or looks at labs next removes it
        use("status")
        with cache.locked(folder.parent / "lock"):
            labs.sweep()
    assert not folder.exists()


def test_one_that_lasts(checkout, use):
    try:
        assert b"  up  " in use("kvm", "up", "--seconds", "600").stdout
        assert use("kvm", "run", "--", "touch", "/root/kept").returncode == 0
        assert use("kvm", "run", "--", "ls", "/root").stdout == b"kept\n"
        assert use("kvm", "run", "--seconds", "2", "--", "sleep", "4321").returncode == 124
        assert use("kvm", "run", "--", "pgrep", "-f", "sleep 4321").returncode == 1
        assert b"  up  " in use("status").stdout
        ((_, record),) = checkout.running()
        assert record.lasting
    finally:
        use("kvm", "down")
    assert checkout.running() == []


def test_tests_bring_their_report_back(use, tmp_path):
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
