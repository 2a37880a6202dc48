"""What killed runs left is removed when the next run starts; what others make or own is not."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from vmcloner_core.errors import BackendError, HostCommandError, WrongState
from vmcloner_core.images import DRAFT_PREFIX
from vmcloner_core.locks import hold, hold_free, is_held
from vmcloner_core.model import Outcome, State
from vmcloner_core.survey import Unseen


def leave(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("left")
    return paths


def places(host, clone):
    """Return what a clone that is gone may have left."""
    return (
        host.consoles / f"{clone}.log",
        host.consoles / f"{clone}.log.0",
        host.boots / clone / "kernel",
    )


def there(paths):
    return [path for path in paths if path.exists()]


def any_run(lab):
    """Do a run that changes nothing, on a fleet of its own."""
    lab.engine.create("runner", "t1", count=1)


def test_what_clones_that_are_gone_left(lab):
    host = lab.engine.host
    left = leave(*places(host, "old-1"), *places(host, "runner-7"))
    any_run(lab)
    assert there(left) == []
    assert not (host.boots / "old-1").exists()


def test_a_delete_that_was_cut_off_is_made_good_by_the_same_again(lab):
    """It was killed between undefine and the removal of the log."""
    lab.engine.create("web", "t1", count=2)
    host = lab.engine.host
    left = leave(*places(host, "web-1"))
    kept = leave(*places(host, "web-2"))
    del lab.machines.machines["web-1"]
    lab.engine.delete("web-1")
    assert there(left) == []
    assert there(kept) == list(kept)


def test_what_is_not_ours_stays(lab):
    host = lab.engine.host
    lab.engine.create("web", "t1", count=1)
    lab.machines.foreign.add("alien-1")
    others = leave(
        *places(host, "web-1"),
        *places(host, "alien-1"),
        host.consoles / "notes.txt",
        host.consoles / "virtual-machine.log",
        host.boots / "mine" / "file",
        host.templates / "t1" / "image.raw",
        host.templates / ".hidden",
    )
    any_run(lab)
    assert there(others) == list(others)


@pytest.mark.parametrize("change", ["another host's", "unknown hypervisor"])
def test_clones_that_another_may_run_are_left(lab, monkeypatch, change):
    lab.engine.create("web", "t1", count=1)
    host = lab.engine.host
    left = leave(*places(host, "web-1"))
    del lab.machines.machines["web-1"]
    local = lab.engine._host
    if change == "unknown hypervisor":
        names = local.drivers.names
        gone = {"hypervisor": (), "storage": names("storage")}
        monkeypatch.setattr(local.drivers, "names", gone.__getitem__)
        found = local.survey()
    else:
        monkeypatch.setattr(local, "_state_id", "0" * 32)
        found = local.survey()
        assert not found.clones[0].ours
    local.sweep({"web"}, found)
    assert there(left) == list(left)


def test_nothing_is_gone_while_a_hypervisor_cannot_be_read(lab, monkeypatch):
    host = lab.engine.host
    left = leave(*places(host, "old-1"))

    def fail():
        raise BackendError("no answer")

    monkeypatch.setattr(lab.machines, "inspect", fail)
    found = lab.engine._host.survey()
    assert isinstance(found.unseen[0], Unseen)
    lab.engine._host.sweep({"old"}, found)
    assert there(left) == list(left)


@pytest.mark.parametrize("lock", ["fleet/old", "template/t9"])
def test_what_a_run_beside_us_is_making_stays(lab, lock):
    host = lab.engine.host
    of_fleet = leave(*places(host, "old-1"), host.records / ".old-1.draft" / "record.json")
    of_template = leave(host.templates / ".t9-abcd1234" / "image.raw")
    with hold(host.state, [lock]):
        any_run(lab)
        making, left = (of_fleet, of_template) if "old" in lock else (of_template, of_fleet)
        assert there(making) == list(making)
        assert there(left) == []
    any_run(lab)
    assert there(making) == []


def test_a_clone_that_was_made_since_we_looked_keeps_its_files(lab):
    """Another run made it after our look at the host, and has let go of its lock again."""
    host, local = lab.engine.host, lab.engine._host
    before = local.survey()
    lab.engine.create("late", "t1", count=1)
    made = leave(*places(host, "late-1"))
    local.sweep({"web"}, before)
    assert there(made) == list(made)


def test_downloads_and_builds_of_killed_imports(lab):
    host = lab.engine.host
    host.templates.mkdir(parents=True)
    for name in ("t1", "my-image"):
        made = Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX.format(name), dir=host.templates))
        left = leave(made / "disk.qcow2", made / "tmpdir" / "root" / "etc" / "passwd")
    any_run(lab)
    assert there(left) == []
    assert list(host.templates.iterdir()) == []


def test_drafts_of_the_state_folders_own_files(lab):
    state = lab.engine.host.state
    old, other, new = leave(state / ".id-ab12cd_9", state / ".identity", state / ".kvm-ab12cd_9")
    for path in (old, other):
        os.utime(path, (0, 0))
    any_run(lab)
    assert there([old, other, new]) == [other, new]


@pytest.mark.parametrize("name", [".kvm-ab12cd_9", ".validated.json.draft"])
def test_drafts_that_take_an_instant_are_old_after_an_hour(lab, name):
    (draft,) = leave(lab.engine.host.state / name)
    any_run(lab)
    assert draft.exists()
    os.utime(draft, (0, 0))
    any_run(lab)
    assert not draft.exists()


def test_files_that_no_clone_shares_any_more(lab):
    shared = lab.engine.host.boots / "shared"
    lab.engine.create("web", "t1", count=1)
    used, unused, draft, old = leave(
        shared / "t1.kernel.5", shared / "t2.kernel.5", shared / ".making", shared / ".killed"
    )
    (lab.engine.host.boots / "web-1").mkdir(parents=True)
    (lab.engine.host.boots / "web-1" / "kernel").hardlink_to(used)
    os.utime(old, (0, 0))
    any_run(lab)
    assert there([used, unused, draft, old]) == [used, draft]
    draft.unlink()
    lab.engine.delete("web")
    any_run(lab)
    assert not shared.exists()


def test_each_pool_sweeps_itself_and_one_that_fails_stops_nothing(lab, monkeypatch, caplog):
    def fail():
        raise HostCommandError("pool /p: Input/output error")

    monkeypatch.setattr(lab.pool, "sweep", fail)
    any_run(lab)
    assert lab.engine.list()[0].state is State.STOPPED
    assert "left behind in storage 'reference': pool /p: Input/output error" in caplog.text


def test_what_cannot_be_removed_is_one_line_and_the_rest_goes(lab, monkeypatch, caplog):
    host = lab.engine.host
    stuck, *left = leave(*places(host, "old-1"), *places(host, "old-2"))
    unlink = Path.unlink

    def fail(path, **options):
        if path == stuck:
            raise OSError(5, "Input/output error")
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", fail)
    with caplog.at_level(logging.WARNING):
        any_run(lab)
    assert there([stuck, *left]) == [stuck]
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"left behind: {stuck}: Input/output error"]


def test_free_locks_are_taken_and_others_not_waited_for(tmp_path):
    with hold(tmp_path, ["a"]), hold_free(tmp_path, ["a", "b"]) as free:
        assert free == {"b"}
        with hold_free(tmp_path, ["b", "c"]) as more:
            assert more == {"c"}
    with hold_free(tmp_path, ["a"]) as free:
        assert free == {"a"}


def test_whether_a_lock_is_held_is_told_without_taking_it(tmp_path):
    assert not is_held(tmp_path, "a")
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path, ["a"]):
        assert is_held(tmp_path, "a")
        assert not is_held(tmp_path, "b")
    assert not is_held(tmp_path, "a")
    with hold_free(tmp_path, ["a"]) as free:
        assert free == {"a"}


# --- a command whose parent was killed ----------------------------------------------------------

PARENT = """
from vmcloner_core.process import LocalRunner
LocalRunner().run(["sh", "-c", "echo $$ > '{pid}.new'; mv '{pid}.new' '{pid}'; exec sleep 600"])
"""


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.02)
    return False


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_ends_when_its_parent_is_killed(tmp_path):
    file = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", PARENT.format(pid=file)]) as parent:
        assert wait_until(file.exists)
        pid = int(file.read_text())
        try:
            assert alive(pid)
            parent.kill()
            parent.wait()
            assert wait_until(lambda: not alive(pid))
        finally:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_command_whose_parent_has_ended_does_not_start(tmp_path, monkeypatch):
    from vmcloner_core.process import LocalRunner

    monkeypatch.setattr("vmcloner_core.process.os.getpid", lambda: 1)
    with pytest.raises(HostCommandError):
        LocalRunner().run(["touch", str(tmp_path / "made")])
    assert not any(tmp_path.iterdir())


def test_a_command_runs_no_python_of_ours_between_fork_and_exec(monkeypatch):
    """Another thread may hold a lock then, which the child could wait for without end."""
    from vmcloner_core.process import LocalRunner

    given = {}
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda *args, **options: given.update(options) or popen(*args, **options),
    )
    LocalRunner().run(["true"])
    assert given["start_new_session"]
    assert given.get("preexec_fn") is None


def test_a_command_outlives_other_threads(tmp_path):
    """It ends with the thread that waits for it, and with no other."""
    from vmcloner_core.process import LocalRunner

    thread = threading.Thread(target=lambda: LocalRunner().run(["true"]))
    thread.start()
    thread.join()
    assert LocalRunner().run(["sh", "-c", "sleep 0.2; echo done"]).stdout == b"done\n"


def test_volumes_of_clones_that_are_off_are_deactivated(lab, monkeypatch):
    """Who stopped or saved them was killed before it did that: the next run of the fleet does."""
    done = []

    def deactivate(_pool, volumes):
        for volume in volumes:
            done.append(volume.name)
            yield Outcome(key=volume.name)

    lab.engine.create("web", "t1", count=4)
    lab.engine.create("other", "t1", count=1)
    lab.engine.start("web-[1-2]")
    lab.engine.save("web-2")
    del lab.machines.machines["web-4"]
    assert not lab.pool.activates
    monkeypatch.setattr(type(lab.pool), "deactivate", deactivate)
    assert lab.pool.activates
    lab.engine.save("web-2")
    assert sorted(done) == ["web-2-disk0", "web-3-disk0", "web-4-disk0"]


def test_a_volume_that_can_not_be_deactivated_is_left(lab, monkeypatch, caplog):
    def deactivate(_pool, volumes):
        error = WrongState("in use")
        yield from (Outcome(key=volume.name, error=error) for volume in volumes)

    def broken(_pool, _volumes):
        raise HostCommandError("no such pool")

    lab.engine.create("web", "t1", count=1)
    for how in (deactivate, broken):
        monkeypatch.setattr(type(lab.pool), "deactivate", how)
        lab.engine.stop("web")
    assert "no such pool" in caplog.text
    assert "in use" not in caplog.text
