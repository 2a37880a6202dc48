"""What killed runs leave."""

from __future__ import annotations

import attrs

from vmcloner_core.errors import VmclonerError


@attrs.frozen(kw_only=True)
class Leftover:
    """Something on a host that nothing needs any more.

    :param kind: what it is: ``console``, ``log``, ``boot``, ``record``, ``image`` (a download or a
        build), ``warm`` (the folder of a warm origin), ``draft``, ``disk`` or ``domain``.
    :param name: its path; a domain's name.
    :param size: bytes that it takes on the host's disks.
    :param why: why nothing needs it.
    :param host: of many hosts, the one that has it.
    :param error: why it could not be removed; None if it was, or was not to be.
    """

    kind: str
    name: str
    size: int
    why: str
    host: str = ""
    error: VmclonerError | None = None
