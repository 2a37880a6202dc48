"""The process of an engine beside a host, for one controller: ``python -m vmcloner_dask.engine``.

Standard input has a line ``NUMBER NAME TEXT`` for each call, and empty lines as signs of life;
standard output one ``NUMBER KINDTEXT`` for all that is sent back. It ends when its input does, or
when nothing came for :data:`SILENT` seconds: a worker that hangs must not keep a fleet's lock. The
kernel then releases its locks; what it was doing is completed by the next run.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from vmcloner_core.hosts.carrier import begin

SILENT = 60
"""Seconds."""
LOG = "l"
"""The first character of what is logged."""


def main() -> None:
    """Answer the calls of standard input until it ends; ``argv[1]`` is a settings file or empty."""
    out = os.dup(1)
    os.dup2(2, 1)  # what others print isn't an answer
    lock = threading.Lock()

    def send(number: str, said: str) -> None:
        left = memoryview(f"{number} {said}\n".encode())
        with lock:
            while left:
                left = left[os.write(out, left) :]

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send("0", LOG + record.getMessage()[:4096].replace("\n", " "))

    logging.basicConfig(level=logging.WARNING, handlers=[Forward()])
    config = sys.argv[1] or None

    def answering(line: str) -> None:
        number, name, text = line.split(" ", 2)
        begin(lambda said: send(number, said), config, name, text)

    signal.alarm(SILENT)  # its default action ends the process, even where Python hangs
    for line in sys.stdin:
        signal.alarm(SILENT)
        if line.strip():
            answering(line)
    os._exit(0)  # the threads of calls in progress would be waited for


if __name__ == "__main__":
    main()
