"""Starts are admitted by what the host can carry."""

import threading

import pytest

from vmcloner_core.admission import BOUND, LONGEST, SETTLE, STEP, Admission, HostLoad
from vmcloner_core.drivers import Lane
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import Outcome
from vmcloner_core.pipeline import Pipeline, Stage, Work
from vmcloner_core.plan import ClonePlan
from vmcloner_core.request import CreateRequest
from vmcloner_core.settings import Settings
from vmcloner_core.testing.samples import make_labels

NAMES = [f"web-{n}" for n in range(1, 21)]


class Host:
    """A clock and a load that the test sets."""

    def __init__(self):
        self.now, self.loaded = 100.0, True

    def admission(self, limit=None, waits=NAMES, **options):
        return Admission(
            limit,
            frozenset(waits),
            cpus=2,
            busy=lambda: self.loaded,
            clock=lambda: self.now,
            **options,
        )


def admitted(gate, names=NAMES):
    return [name for name in names if gate.admit(name)]


def test_a_loaded_host_boots_one_guest_for_each_processor():
    gate = Host().admission()
    assert admitted(gate) == ["web-1", "web-2"]
    gate.left("web-1", failed=False)
    assert admitted(gate, NAMES[2:]) == ["web-3"]
    gate.left("web-3", failed=True)
    assert admitted(gate, NAMES[3:]) == ["web-4"]


def test_who_was_admitted_stays_so():
    gate = Host().admission()
    assert admitted(gate) == admitted(gate)


def test_emulated_guests_get_more_company_only_step_by_step():
    host = Host()
    host.loaded = False
    gate = host.admission(emulated=True)
    assert admitted(gate) == ["web-1", "web-2"]
    host.now += STEP
    assert admitted(gate, NAMES[2:]) == ["web-3"]
    host.loaded = True
    host.now += 10 * STEP
    assert admitted(gate, NAMES[3:]) == []


def test_an_idle_host_with_kvm_boots_many():
    host = Host()
    host.loaded = False
    assert len(admitted(host.admission())) == 8


def test_without_a_wait_guests_count_until_they_have_settled():
    host = Host()
    gate = host.admission(waits=())
    assert admitted(gate) == ["web-1", "web-2"]
    gate.left("web-1", failed=False)  # it is only started
    gate.left("web-2", failed=True)
    assert admitted(gate, NAMES[2:]) == ["web-3"]
    host.now += SETTLE + 1
    assert admitted(gate, NAMES[3:]) == ["web-4", "web-5"]


def test_without_a_wait_nothing_is_held_up_for_long():
    host = Host()
    gate = host.admission(waits=())
    admitted(gate)
    host.now += BOUND + 1
    assert admitted(gate, NAMES[2:]) == NAMES[2:]


def test_a_guest_that_never_gets_ready_does_not_keep_the_others_out():
    host = Host()
    gate = host.admission()
    admitted(gate)
    host.now += LONGEST + 1
    assert admitted(gate, NAMES[2:]) == ["web-3", "web-4"]


def test_a_number_holds_whatever_the_load():
    host = Host()
    host.loaded = False
    assert len(admitted(host.admission(5))) == 5
    host.loaded = True
    assert len(admitted(host.admission(5))) == 5


def test_a_cancelled_run_holds_nobody():
    stopped = threading.Event()
    gate = Host().admission(open_=stopped.is_set)
    assert len(admitted(gate)) == 2
    stopped.set()
    assert admitted(gate) == NAMES


# --- the host's load ----------------------------------------------------------------------------


@pytest.fixture
def proc(tmp_path):
    (tmp_path / "pressure").mkdir()

    def write(total, runnable, avg=0.0):
        line = f"some avg10={avg} avg60=0.00 avg300=0.00 total={total}\n"
        (tmp_path / "pressure/cpu").write_text(line + line.replace("some", "full"))
        (tmp_path / "loadavg").write_text(f"9.99 9.99 9.99 {runnable}/230 8301\n")
        return tmp_path

    return write


def test_pressure_since_the_last_look_counts(proc):
    now = [0.0]
    load = HostLoad(2, proc(5_000_000, 1, avg=90.0), lambda: now[0])
    assert load()  # at first, the kernel's own average
    now[0] = 1.0
    proc(5_100_000, 1, avg=90.0)
    assert not load()  # a tenth of the second
    now[0] = 2.0
    proc(5_900_000, 1)
    assert load()


def test_a_long_run_queue_counts(proc):
    assert HostLoad(2, proc(0, 4))()
    assert not HostLoad(2, proc(0, 3))()


def test_kernels_without_pressure_have_a_run_queue(proc):
    folder = proc(0, 9)
    (folder / "pressure/cpu").unlink()
    assert HostLoad(2, folder)()
    (folder / "loadavg").write_text("nonsense")
    assert not HostLoad(2, folder)()


# --- in runs ------------------------------------------------------------------------------------


def test_a_pipeline_begins_no_work_that_is_not_admitted():
    """Each start is admitted when the guest before is ready; the last stage sees one at a time."""
    host, most, booting = Host(), [], []
    gate = host.admission(1)

    def start(works, _more):
        booting.extend(works)
        most.append(len(booting))
        yield from (Outcome(key=work.name) for work in works)

    def wait(works, _more):
        for work in works:
            booting.remove(work)
            yield Outcome(key=work.name)

    stages = (
        Stage(step="start", call=start, lane=Lane(batch=4, concurrency=3), gate=gate),
        Stage(step="wait", call=wait, lane=Lane(batch=1)),
    )
    works = [
        Work(plan=ClonePlan(labels=make_labels(index=n), steps=("start", "wait")), route=stages)
        for n in range(1, 9)
    ]
    Pipeline("r", lambda _event: None, threading.Event(), 0.0)(works)
    assert [work.error for work in works] == [None] * 8
    assert set(most) == {1}


def test_a_run_that_is_cancelled_does_not_wait_for_admission():
    cancelled = threading.Event()
    gate = Host().admission(1, open_=cancelled.is_set)

    def start(works, _more):
        cancelled.set()
        yield from (Outcome(key=work.name) for work in works)

    stage = Stage(step="start", call=start, lane=Lane(batch=1), gate=gate)
    works = [
        Work(plan=ClonePlan(labels=make_labels(index=n), steps=("start",)), route=(stage,))
        for n in range(1, 4)
    ]
    Pipeline("r", lambda _event: None, cancelled, 0.0)(works)
    assert [str(work.error) for work in works[1:]] == ["stopped by the user"] * 2


def test_how_many_may_boot_is_the_users_or_the_settings(lab, run):
    def planned(**options):
        return lab.engine.plan(CreateRequest(fleet="web", template="t1", **options)).boot_jobs

    assert planned() == 256  # the test's own settings
    assert planned(boot_jobs=3) == 3
    assert planned(boot_jobs="auto") is None
    assert run("create", "web", "-t", "t1", "-n", "6", "--wait", "--boot-jobs", "2")[0] == 0
    for wrong in ("0", "many", "-1", "257"):
        assert run("start", "web", f"--boot-jobs={wrong}")[0] == 3


def test_settings_say_how_many_may_boot(tmp_path):
    file = tmp_path / "vmcloner.toml"
    file.write_text("[limits]\nboot_jobs = 8\n")
    assert Settings.load(file).limits.boot_jobs == 8
    file.write_text('[limits]\nboot_jobs = "auto"\n')
    assert Settings.load(file).limits.boot_jobs == "auto"
    assert Settings().limits.boot_jobs == "auto"
    for wrong in ('"many"', "0", "true", "[1]"):
        file.write_text(f"[limits]\nboot_jobs = {wrong}\n")
        with pytest.raises(InvalidRequest, match="boot"):
            Settings.load(file)
