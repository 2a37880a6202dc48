"""Talk to a QEMU that we started (QEMU, docs/interop/qmp-spec.rst).

This uses a pair of connected sockets, one of which QEMU inherits: no file, no port, no race.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from contrib.lab.errors import LabError, TimeUp


class Qmp:
    """Our end of the connection. Not thread-safe."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._stream = self._ours.makefile("rb")

    @property
    def descriptor(self) -> int:
        """The descriptor that QEMU has to inherit."""
        return self._theirs.fileno()

    def begin(self, timeout: float = 60.0) -> None:
        """Start the session, after QEMU was started."""
        self._theirs.close()
        self._receive(timeout)  # the greeting
        self.command("qmp_capabilities")

    def command(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        descriptors: Sequence[int] = (),
        timeout: float = 60.0,
    ) -> Any:
        """Run a command and return its result.

        :param descriptors: open files to send with it.
        :raises LabError: it failed, or QEMU ended.
        :raises TimeUp: no response within ``timeout`` seconds.
        """
        message = {"execute": name, "arguments": dict(arguments or {})}
        try:
            socket.send_fds(self._ours, [json.dumps(message).encode() + b"\n"], descriptors)
        except OSError as error:
            raise LabError(f"QEMU ended: {error.strerror}") from error
        while True:
            answer = self._receive(timeout)
            if "error" in answer:
                raise LabError(f"QEMU: {name}: {answer['error']['desc']}")
            if "return" in answer:  # anything else is an event
                return answer["return"]

    def pass_descriptor(self, name: str, descriptor: int) -> None:
        """Send QEMU an open file, with a name that later commands use."""
        self.command("getfd", {"fdname": name}, descriptors=[descriptor])

    def human(self, line: str) -> str:
        """Run a human monitor command, if there is no QMP command."""
        return str(self.command("human-monitor-command", {"command-line": line}))

    def close(self) -> None:
        """Close the connection. QEMU keeps running."""
        self._stream.close()
        self._ours.close()

    def _receive(self, timeout: float) -> dict[str, Any]:
        self._ours.settimeout(timeout)
        try:
            line = self._stream.readline()
        except TimeoutError:
            raise TimeUp(f"QEMU: no answer within {timeout:.0f} s") from None
        except OSError as error:
            raise LabError(f"QEMU ended: {error.strerror}") from error
        if not line:
            raise LabError("QEMU ended")
        message: dict[str, Any] = json.loads(line)
        return message
