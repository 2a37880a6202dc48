"""Try again what failed by a fault that passes: locks that are held, time limits of a busy host."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

import attrs

from vmcloner_core.cancelling import pause
from vmcloner_core.errors import Interrupted, VmclonerError
from vmcloner_core.model import Outcome
from vmcloner_core.units import format_seconds
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.errors import is_code

PATIENCE = 120.0
"""Seconds after its beginning until which something is tried again."""
LONGEST_PAUSE = 10.0
_PASSING = re.compile(
    r"cannot acquire state change lock|timed? ?out|resource busy|temporarily unavailable"
    r"|failed to (acquire|get).* lock|connection reset|keepalive",
    re.IGNORECASE,
)


def is_passing(error: VmclonerError | None) -> bool:
    """Tell whether an error of libvirt's is due to a fault that may soon be over."""
    cause = error.__cause__ if error is not None else None
    if not isinstance(cause, libvirt().libvirtError):
        return False
    if is_code(cause, "VIR_ERR_OPERATION_TIMEOUT", "VIR_ERR_RESOURCE_BUSY"):
        return True
    message = str(cause.get_error_message() or cause)
    return is_code(
        cause, "VIR_ERR_INTERNAL_ERROR", "VIR_ERR_OPERATION_FAILED", "VIR_ERR_SYSTEM_ERROR"
    ) and bool(_PASSING.search(message))


def persistently(attempt: Callable[[], Outcome[None]]) -> Outcome[None]:
    """Return an idempotent attempt's outcome, made again while its error is a passing one.

    For up to :data:`PATIENCE` seconds, or until the run is to end; the error then says how often it
    was tried.
    """
    begun, tries, wait = time.monotonic(), 1, 1.0
    outcome = attempt()
    while is_passing(outcome.error) and time.monotonic() - begun < PATIENCE:
        try:
            pause(wait * random.uniform(0.5, 1.0))  # noqa: S311 - not all at the same moment
        except Interrupted as stop:
            return attrs.evolve(outcome, error=stop)
        wait = min(2 * wait, LONGEST_PAUSE)
        tries += 1
        outcome = attempt()
    if tries == 1:
        return outcome
    if outcome.error is None:
        # An attempt that failed may have done it all the same: then this call did.
        return attrs.evolve(outcome, changed=True)
    if is_passing(outcome.error):
        spent = format_seconds(time.monotonic() - begun)
        message = f"{outcome.error.message}, tried {tries} times in {spent}"
        error = type(outcome.error)(message, hint=outcome.error.hint)
        error.__cause__ = outcome.error
        return attrs.evolve(outcome, error=error)
    return outcome
