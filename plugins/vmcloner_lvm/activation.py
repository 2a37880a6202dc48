"""Activate and deactivate volumes, many with one command.

A command of LVM costs the same for one volume and for fifty, so drivers combine the calls of
concurrent threads (:func:`combined`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vmcloner_core.coalesce import Coalescer
from vmcloner_core.errors import HostCommandError, VmclonerError, WrongState
from vmcloner_lvm.commands import Lvm
from vmcloner_lvm.devmapper import DeviceMapper, device_name
from vmcloner_lvm.holders import Holders

MANY = 100
"""Volumes per command."""
_SETTLING = 5.0
"""Seconds that udev may take to probe a device, or to make its name."""
_PAUSE = 0.1

Results = Mapping[str, VmclonerError | None]


Change = Callable[[Lvm, DeviceMapper, Sequence[str]], Results]
""":func:`activate` or :func:`deactivate`."""


def combined(
    change: Change, lvm: Lvm, mapper: DeviceMapper
) -> Coalescer[str, VmclonerError | None]:
    """Return a change of one group's volumes that combines the calls of concurrent threads."""
    return Coalescer(lambda names: change(lvm, mapper, names))


def activate(lvm: Lvm, mapper: DeviceMapper, names: Sequence[str]) -> Results:
    """Activate volumes; returns each one's error, None if it is usable."""
    active = _active(lvm, mapper, names)
    for some in _parts([name for name in names if name not in active]):
        with contextlib.suppress(HostCommandError):  # the checks below tell which ones failed
            lvm.run("lvchange", "-ay", "-K", *(f"{lvm.group}/{name}" for name in some))
    return {name: _activated(lvm, mapper, name) for name in names}


def _activated(lvm: Lvm, mapper: DeviceMapper, name: str) -> VmclonerError | None:
    path = Path(f"/dev/{lvm.group}/{name}")
    try:
        if mapper.device(device_name(lvm.group, name)) is None:
            lvm.run("lvchange", "-ay", "-K", f"{lvm.group}/{name}")  # alone, for its message
        deadline = time.monotonic() + _SETTLING
        while not path.exists():
            if time.monotonic() > deadline:
                raise HostCommandError(f"{path} did not appear", hint="udevadm settle")
            time.sleep(_PAUSE)
    except VmclonerError as error:
        return error
    return None


def deactivate(
    lvm: Lvm, mapper: DeviceMapper, names: Sequence[str], *, held: bool = False
) -> Results:
    """Deactivate volumes; returns each one's error: WrongState, with the user, for one in use.

    udev opens a device for a moment after each write: that is waited for.

    :param held: this process holds the group's lock.
    """
    left = _active(lvm, mapper, names)
    holders: dict[str, str] = {}
    deadline = None
    while left:
        opened = {name for name, (count, _) in left.items() if count}
        idle = [name for name in left if name not in opened]
        for some in _parts(idle):
            with contextlib.suppress(HostCommandError):
                lvm.run("lvchange", "-an", *(f"{lvm.group}/{name}" for name in some), held=held)
        left = _active(lvm, mapper, list(left))
        users = Holders()
        holders = {name: users.name(number) for name, (_, number) in left.items()}
        lasting = all(holders.values()) and not any("udev" in user for user in holders.values())
        now = time.monotonic()
        # Counted from here: LVM may need longer for a thousand volumes than udev for the last one.
        deadline = deadline or now + _SETTLING
        if not left or lasting or now > deadline:
            break
        time.sleep(_PAUSE)
    return {name: _busy(lvm, name, holders[name]) if name in left else None for name in names}


def refresh(lvm: Lvm, mapper: DeviceMapper, name: str, size: int, *, held: bool = False) -> None:
    """Give an active volume's device the size that is in the metadata, if that is larger.

    A killed lvextend may have written only the metadata.

    :param held: this process holds the group's lock.
    """
    now = mapper.size(device_name(lvm.group, name))
    if now is not None and now < size:
        lvm.run("lvchange", "--refresh", f"{lvm.group}/{name}", held=held)


def _active(lvm: Lvm, mapper: DeviceMapper, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return those of ``names`` that are active, with their open counts and device numbers."""
    devices = {device_name(lvm.group, name): name for name in names}
    found = {}
    for each in mapper.present(devices.keys()):
        device = mapper.device(each)
        if device is not None:
            found[devices[each]] = (device.opened, device.number)
    return found


def _busy(lvm: Lvm, name: str, user: str) -> WrongState:
    return WrongState(
        f"volume {lvm.group}/{name} is in use" + (f" by {user}" if user else ""),
        hint="stop the clone first",
    )


def _parts(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + MANY] for start in range(0, len(names), MANY)]
