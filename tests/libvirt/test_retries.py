"""Starts that are tried again, and what ends that."""

import threading

import libvirt
import pytest

from vmcloner_core.cancelling import cancellable
from vmcloner_core.errors import DeadlineExceeded, Interrupted
from vmcloner_core.model import Outcome
from vmcloner_libvirt import retries
from vmcloner_libvirt.retries import persistently


def passing():
    """Return a failure by a fault that passes."""
    cause = libvirt.libvirtError("cannot acquire state change lock")
    code = libvirt.VIR_ERR_OPERATION_TIMEOUT
    cause.err = (code, libvirt.VIR_FROM_QEMU, "cannot acquire", 2, "", None, None, -1, -1)
    error = DeadlineExceeded("web-1: cannot acquire state change lock")
    error.__cause__ = cause
    return Outcome(key="web-1", error=error)


def test_a_run_that_is_to_end_tries_nothing_again():
    event, tries = threading.Event(), []

    def attempt():
        tries.append(1)
        event.set()
        return passing()

    with cancellable(event):
        outcome = persistently(attempt)
    assert isinstance(outcome.error, Interrupted)
    assert len(tries) == 1


def test_it_is_tried_until_it_works(monkeypatch):
    monkeypatch.setattr(retries, "pause", lambda _seconds: None)
    left = [passing(), passing(), Outcome(key="web-1", changed=False)]
    outcome = persistently(lambda: left.pop(0))
    assert (outcome.error, outcome.changed, left) == (None, True, [])


def test_it_is_not_tried_for_ever(monkeypatch):
    monkeypatch.setattr(retries, "pause", lambda _seconds: None)
    monkeypatch.setattr(retries, "PATIENCE", 0.01)
    with pytest.raises(DeadlineExceeded, match=r"tried \d+ times in"):
        persistently(passing).unwrap()
