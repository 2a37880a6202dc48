"""The console script ``vmcloner``."""

from __future__ import annotations

import atexit
import gc
import sys


def main() -> int:
    """Run the shell in a process of its own; returns the exit code."""
    # What imports and a run make stays: looking through it for garbage takes a tenth of the time.
    gc.set_threshold(100_000)
    # At exit the garbage collector would look through all objects, for nothing.
    atexit.register(gc.freeze)
    from vmcloner_core.cli import app  # what it imports is most of what there is

    return app.main()


if __name__ == "__main__":
    sys.exit(main())
