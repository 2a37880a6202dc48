"""What can go wrong on the way to a boot file, and how what the network says is shown."""

from __future__ import annotations

import errno
import re

from vmcloner_core import errors
from vmcloner_core.errors import HostCommandError

MAX_SHOWN = 200
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""What no command line, label or name may have."""


class NetbootError(HostCommandError):
    """A guest can't be booted from the network; the message is one line, fit to be shown."""


class Refused(NetbootError):
    """A server doesn't have (or give) the file: the search may go on with the next name."""


class Malformed(ValueError):
    """A packet breaks its protocol: it is dropped."""


def shown(text: str) -> str:
    """Return text of the network as it may be shown: as core does, and short."""
    return errors.shown(text, MAX_SHOWN)


def reason(error: OSError) -> str:
    """Return why a system call failed, with the name that manuals list it by."""
    code = errno.errorcode.get(error.errno or 0)
    return f"{error.strerror} ({code})" if code else str(error)
