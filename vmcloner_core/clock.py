"""Read a host's clock, and tell whether it is plainly wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from vmcloner_core.errors import WrongState
from vmcloner_core.model import Moment

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TOLERANCE = 60.0
"""Seconds by which a clock may be behind a file: NTP sets clocks back by fractions of a second."""
LONG_OFF = 366 * 86_400
"""Seconds after the newest file, after which a clock isn't believed."""


def now() -> Moment:
    """Return the time on this machine."""
    boot = BOOT_ID.read_text(encoding="ascii").strip()
    return Moment(wall=time.time(), boot=boot, up=time.clock_gettime(time.CLOCK_BOOTTIME))


def check_clock(moment: Moment, files: Iterable[Path], *, long_off: float = LONG_OFF) -> None:
    """Check that a clock is neither behind nor far ahead of the newest of some files.

    :param long_off: seconds that it may be ahead.
    :raises WrongState: it is; names the clock's time and the file.
    """
    times = []
    for file in files:
        try:
            times.append((os.lstat(file).st_mtime, file))
        except OSError:  # it was removed just now, or never made
            continue
    newest, file = max(times, default=(moment.wall, Path()))
    ahead = moment.wall - newest
    if -TOLERANCE <= ahead <= long_off:
        return
    what = "older than" if ahead < 0 else "more than a year after"
    raise WrongState(
        f"this host's clock is wrong, leases can't be judged: it says {_shown(moment.wall)}, "
        f"which is {what} {file} ({_shown(newest)})",
        hint=f"set the clock; if it is right: touch {file}",
    )


def _shown(wall: float) -> str:
    try:
        return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{wall:.0f} s"
