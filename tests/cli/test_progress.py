"""What is shown while a run goes on, on a terminal and elsewhere."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from vmcloner_core.cli.account import Account
from vmcloner_core.cli.lines import HEARTBEAT, QUIET, Building, Lines
from vmcloner_core.model import ImageSource, Template
from vmcloner_core.plan import ClonePlan, Plan, ProgressEvent, StepEvent, StepStatus, Waiting
from vmcloner_core.testing.samples import make_labels

STEPS = ("clone", "define", "start", "wait")


def plan(count=4, **more):
    clones = tuple(ClonePlan(labels=make_labels(index=n), steps=STEPS) for n in range(1, count + 1))
    return Plan(action="create", run="r", host="local", clones=clones, order=STEPS, **more)


def event(clone, step, status, at=0.0):
    return StepEvent(run="r", clone=clone, step=step, status=StepStatus[status], at=at)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def account(clock):
    account = Account(clock)
    account.begin(plan())
    return account


def begin(account, step, *names):
    for name in names:
        account.step(event(name, step, "STARTED"))


def ready(account, name, at):
    account.step(event(name, "wait", "UNCHANGED", at))


def test_how_many_are_at_which_phase(account, clock):
    assert account.phase() == "queued"
    begin(account, "start", "web-1")
    assert account.phase() == "starting"
    begin(account, "wait", "web-1", "web-2", "web-3")
    account.waits(
        Waiting(
            phases={"booting": 1, "waiting for ssh": 2},
            slowest="web-2",
            seconds=41.0,
            said="[ \x1b[32m OK ] Reached target\x07 " + "x" * 300,
        )
    )
    clock.now = 60.0
    assert account.phase() == "waiting for ssh"
    line = account.line()
    assert line.startswith(
        "0 of 4 clones ready, 1 booting, 2 waiting for ssh, 1 queued; slowest web-2"
    )
    assert "41 s" in line
    assert "Reached target" in line
    assert line.isprintable()
    assert len(line) < 200


def test_the_median_and_an_estimate(account, clock):
    begin(account, "wait", "web-1", "web-2", "web-3", "web-4")
    ready(account, "web-1", 10.0)
    ready(account, "web-2", 20.0)
    clock.now = 30.0
    assert "2 of 4 clones ready (p50 20 s)" in account.line()
    assert "about 30 s left" in account.line()
    account.step(event("web-3", "wait", "FAILED"))
    ready(account, "web-4", 40.0)
    assert account.line().startswith("3 of 4 clones ready (p50 20 s), 1 failed")
    assert "left" not in account.line()
    assert account.phase() == ""


def test_an_image_has_a_phase_of_its_own(account):
    for source, doing in (
        (ImageSource(builder="debian"), "building image"),
        (ImageSource(url="https://example.org/x.raw", sha256="0" * 64), "fetching image"),
    ):
        account.begin(plan(template=Template(name="t1", image=source)))
        account.step(event("t1", "import", "STARTED"))
        assert account.phase() == doing
        assert account.line() == f"{doing} of t1"
        account.step(event("t1", "import", "DONE"))
        assert account.phase() == "queued"


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ({"start": 3, "wait": 7}, "stopping: 3 starts under way (Ctrl-C again gives them up)"),
        ({"clone": 1}, "stopping: 1 copy under way (Ctrl-C again gives it up)"),
        ({"wait": 7}, "stopping"),
        ({}, "stopping"),
    ],
)
def test_what_is_still_done_after_ctrl_c(account, calls, said):
    assert account.stopping(calls) == said


def test_a_log_has_a_line_for_each_phase_and_a_heartbeat(capsys, clock):
    lines = Lines()
    lines._account = Account(clock)
    lines._account.begin(plan())

    def said():
        lines.look()
        return capsys.readouterr().err

    begin(lines._account, "clone", "web-1")
    assert said() == ""  # it may be over soon
    clock.now = QUIET + 1
    assert said().startswith("vmcloner: cloning, 3.0 s: 0 of 4 clones ready, 1 cloning, 3 queued")
    assert said() == ""
    begin(lines._account, "wait", "web-1", "web-2")
    assert said().startswith("vmcloner: booting")
    assert said() == ""
    clock.now += HEARTBEAT
    assert said().startswith("vmcloner: booting")


def test_verbose_says_ready(lab, caplog):
    caplog.set_level("DEBUG")
    lab.engine.create("web", "t1", ready=True)
    assert "web-1 ready" in caplog.messages
    assert "web-1 wait unchanged" not in caplog.messages


def test_the_build_of_an_image_is_told(capsys, monkeypatch):
    monkeypatch.setattr("vmcloner_core.cli.lines.HEARTBEAT", 0.05)
    with Building("debian") as building:
        building.vmcloner_progress(ProgressEvent(run="", what="build other", done=0, total=0))
        assert capsys.readouterr().err == ""
        for done in (0, 2 * 1024**2):
            what = "build debian"
            building.vmcloner_progress(
                ProgressEvent(run="", what=what, done=done, total=8 * 1024**2)
            )
        time.sleep(0.3)
    said = capsys.readouterr().err
    assert said.startswith("vmcloner: building the image of debian: this may take minutes\n")
    assert "2 MiB of 8 MiB" in said
    assert "vmcloner: image of debian done after" in said


# --- as a program -------------------------------------------------------------------------------

WAIT = ["wait", "web", "--for", "console:never", "--timeout", "60"]


def program(*words, **options):
    code = f"from tests.cli.watched import main; raise SystemExit(main({list(words)!r}))"
    return subprocess.Popen([sys.executable, "-c", code], **options)


def read(descriptor, until, seconds=20):
    """Return what a terminal shows until a text appears."""
    shown, end = b"", time.monotonic() + seconds
    while until not in shown and time.monotonic() < end:
        if select.select([descriptor], [], [], 0.2)[0]:
            try:
                shown += os.read(descriptor, 65536)
            except OSError:  # the program has ended
                break
    return shown


def test_on_a_terminal_ctrl_c_answers_at_once_and_ends_with_a_summary():
    ours, theirs = pty.openpty()
    process = program(*WAIT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    try:
        assert b"slowest web-1" in read(ours, b"slowest web-1")
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert b"stopping" in read(ours, b"stopping")
        answered = time.monotonic() - begun
        rest = read(ours, b"\0", 5).decode()
        assert process.wait(10) == 130
        assert answered < 5  # not after the time limit; on an idle machine 0.2 s
        assert "stopped" in rest
        assert len(re.findall(r"web-\d+ +failed", rest)) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_without_a_terminal_there_are_lines():
    process = program(*WAIT[:-1], "4", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = process.communicate(timeout=60)[1]
    assert "vmcloner: booting" in said
    assert "0 of 30 clones ready, 30 booting" in said
    assert "\x1b" not in said
