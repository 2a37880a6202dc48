"""The console script ``vmcloner``."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading


def main() -> int:
    """Run the shell in a process of its own, and end that; else returns the exit code."""
    _replace_closed()
    # What imports and a run make stays: looking through it for garbage takes a tenth of the time.
    gc.set_threshold(100_000)
    # Where the interpreter ends the process, it would look through all objects, for nothing.
    atexit.register(gc.freeze)
    from vmcloner_core.cli import app  # what it imports is most of what there is

    code = _written(app.main(keeps_code=True))
    _leave(code)
    return code


def _replace_closed() -> None:
    """Open standard streams that are closed: as empty, and as output that is refused or dropped.

    Python has None for them, and the next file that is opened would get all that is written there.
    """
    for name, flags, mode in (
        ("stdin", os.O_RDONLY, "r"),
        ("stdout", os.O_RDONLY, "w"),  # what a command prints is not lost without an error
        ("stderr", os.O_WRONLY, "w"),
    ):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, flags), mode))  # noqa: PTH123, SIM115


CUT_OFF = 141
"""The exit code, as of SIGPIPE, if who reads standard output has ended before all was written."""


def _written(code: int) -> int:
    """Write what is left of standard output; returns the exit code with which the process ends."""
    from vmcloner_core.cli.usage import drop_output, unwritten

    if sys.stdout.closed:  # by a pager
        return code
    try:
        sys.stdout.flush()
    except OSError as error:
        cut_off = isinstance(error, BrokenPipeError)
        code = code or (CUT_OFF if cut_off else unwritten(error))
        drop_output()
    return code


LEAVING = 15.0
"""Seconds after which threads that hang in a backend no longer keep the process from ending."""


def _leave(code: int) -> None:
    """End the process soon, also where the interpreter would wait for a thread for ever."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        if not any(_is_awaited(thread) for thread in threading.enumerate()):
            # Freeing each object of each module would take as long as reading the settings.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    watch = threading.Timer(LEAVING, os._exit, (code,))
    watch.daemon = True
    watch.start()


def _is_awaited(thread: threading.Thread) -> bool:
    """Tell whether the interpreter would wait for a thread's end."""
    return not thread.daemon and thread is not threading.current_thread()


if __name__ == "__main__":
    sys.exit(main())
