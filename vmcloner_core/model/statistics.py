"""What running domains use of their host."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Statistics:
    """What one running domain has used since it was started; None is what isn't known.

    :param at: when this was read: seconds of a monotonic clock.
    :param cpu: seconds of processor time, of all processors together.
    :param vcpus: how many processors it has now.
    :param memory: bytes that the guest has now (its balloon).
    :param resident: bytes of the host's memory that it takes.
    :param disk_read, disk_written: bytes, of all disks. :param net_received, net_sent: bytes, of
        all cards, as the guest sees it.
    """

    at: float
    cpu: float | None = None
    vcpus: int | None = None
    memory: int | None = None
    resident: int | None = None
    disk_read: int | None = None
    disk_written: int | None = None
    net_received: int | None = None
    net_sent: int | None = None


@attrs.frozen(kw_only=True)
class Usage:
    """What a clone uses now. Rates are bytes per second; None is what isn't known.

    :param state: of the clone, like ``running``.
    :param cpu: percent of one processor: 200 if two are busy.
    """

    name: str
    state: str
    cpu: float | None = None
    vcpus: int | None = None
    memory: int | None = None
    resident: int | None = None
    disk_read: int | None = None
    disk_written: int | None = None
    net_received: int | None = None
    net_sent: int | None = None

    @classmethod
    def between(
        cls, name: str, state: str, before: Statistics | None, now: Statistics | None
    ) -> Usage:
        """Return what a clone used between two readings.

        Rates are unknown without the first reading, and where a counter began anew: the clone was
        started meanwhile.
        """
        if now is None:
            return cls(name=name, state=state)
        rates = {key: _rate(before, now, key) for key in ("cpu", *RATES)}
        whole = {key: round(value) for key in RATES if (value := rates[key]) is not None}
        cpu = rates["cpu"]
        return cls(
            name=name,
            state=state,
            cpu=None if cpu is None else round(100 * cpu, 1),
            vcpus=now.vcpus,
            memory=now.memory,
            resident=now.resident,
            **whole,
        )


RATES = ("disk_read", "disk_written", "net_received", "net_sent")
"""The fields that are bytes in :class:`Statistics`, and bytes per second in :class:`Usage`."""


def _rate(before: Statistics | None, now: Statistics, key: str) -> float | None:
    old, new = getattr(before, key, None), getattr(now, key)
    if before is None or old is None or new is None or new < old or now.at <= before.at:
        return None
    rate: float = (new - old) / (now.at - before.at)
    return rate
