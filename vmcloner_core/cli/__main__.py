"""The console script ``vmcloner``."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading


def main() -> int:
    """Run the shell in a process of its own; returns the exit code."""
    # What imports and a run make stays: looking through it for garbage takes a tenth of the time.
    gc.set_threshold(100_000)
    # At exit the garbage collector would look through all objects, for nothing.
    atexit.register(gc.freeze)
    from vmcloner_core.cli import app  # what it imports is most of what there is
    from vmcloner_core.kept_code import KeptCode, own_folder

    kept = KeptCode(own_folder())
    code = app.main(kept=kept)
    kept.save()
    _leave(code)
    return code


LEAVING = 15.0
"""Seconds after which threads that hang in a backend no longer keep the process from ending."""


def _leave(code: int) -> None:
    """End the process soon, also where the interpreter would wait for a thread for ever."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    watch = threading.Timer(LEAVING, os._exit, (code,))
    watch.daemon = True
    watch.start()


if __name__ == "__main__":
    sys.exit(main())
