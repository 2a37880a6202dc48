"""What the boot provider and ``vmcloner_pxe.batch`` tell each other, as JSON."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Member:
    """One guest. ``folder`` takes its files; None to fetch nothing."""

    key: str
    mac: str
    machine: str
    folder: str | None = None


@attrs.frozen(kw_only=True)
class Batch:
    """Guests of one interface.

    :param store: a folder in the file system of the guests' folders. :param timeout: seconds.
    """

    interface: str
    store: str
    timeout: float
    guests: tuple[Member, ...]
    dry_run: bool = False


@attrs.frozen(kw_only=True)
class Result:
    """What one guest boots, or ``error``: one line for people.

    :param local: it is to boot its own disk.
    :param config, label: the file that says so, and the name that it has there.
    :param kernel, initrds: where they came from. :param files: their names in its folder.
    """

    key: str
    error: str | None = None
    local: bool = False
    address: str = ""
    config: str = ""
    label: str = ""
    kernel: str = ""
    initrds: tuple[str, ...] = ()
    arguments: str = ""
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
