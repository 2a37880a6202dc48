"""Engines in processes that were forked off: an error at once, or an engine of their own."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from vmcloner_core import Engine
from vmcloner_core.errors import VmclonerError

SECONDS = 60


def in_child(call):
    """Return what a call returns, or the error that it raises, in a process forked off here."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = call()
        except VmclonerError as error:
            said = error
        except BaseException as error:
            said = repr(error)
        os.write(write, f"{type(said).__name__}: {said}".encode())
        os._exit(0)
    os.close(write)
    deadline = time.monotonic() + SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.01)
    with os.fdopen(read) as stream:
        return stream.read()


CALLS = {
    "list": lambda engine: engine.list(),
    "create": lambda engine: engine.create("web", "t1", count=2),
    "delete": lambda engine: engine.delete("web"),
    "import": lambda engine: engine.import_template("t1"),
    "check": lambda engine: list(engine.check_host()),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_engine_of_before_the_fork_is_refused(lab, call):
    lab.engine.create("web", "t1", count=1)
    assert in_child(lambda: call(lab.engine)) == (
        "WrongState: the engine was opened before this process was forked off "
        "(open an engine in each process: Engine.open())"
    )
    assert [clone.name for clone in lab.engine.list()] == ["web-1"]


def test_a_fork_in_mid_run_is_refused_too(lab):
    """Another thread of the parent holds the run's lock, for ever as the child sees it."""
    working, end = threading.Event(), threading.Event()
    clone_one = lab.pool.clone_one

    def slow(request):
        working.set()
        end.wait(SECONDS)
        return clone_one(request)

    lab.pool.clone_one = slow
    run = threading.Thread(target=lab.engine.create, args=("web", "t1"))
    run.start()
    assert working.wait(SECONDS)
    assert in_child(lambda: lab.engine.create("db", "t1")).startswith("WrongState: the engine was")
    end.set()
    run.join()
    assert [clone.name for clone in lab.engine.list()] == ["web-1"]


def test_a_closed_engine_in_a_child_closes_nothing_of_its_parent(lab):
    closed = []
    lab.pool.close = lambda: closed.append(os.getpid())
    assert in_child(lab.engine.close) == "NoneType: None"
    lab.engine.close()
    assert closed == [os.getpid()]


def _listed(config, queue):
    with Engine.open(config=config) as engine:
        queue.put(engine.survey().unseen)


@pytest.mark.libvirt
def test_a_child_has_an_engine_of_its_own(tmp_path):
    """On libvirt's own threads and connections; the parent's go on."""
    config = tmp_path / "vmcloner.toml"
    config.write_text(f"[hosts.local]\nstate = '{tmp_path}/state'\n")
    context = multiprocessing.get_context("fork")
    with Engine.open(config=config) as engine:
        assert engine.survey().unseen == ()
        for _ in range(3):
            queue = context.Queue()
            child = context.Process(target=_listed, args=(config, queue))
            child.start()
            assert queue.get(timeout=SECONDS) == ()
            child.join(SECONDS)
            assert child.exitcode == 0
            assert engine.survey().unseen == ()
