"""Deactivation waits for udev."""

import itertools

from vmcloner_lvm import activation
from vmcloner_lvm.activation import deactivate
from vmcloner_lvm.devmapper import Device
from vmcloner_lvm.holders import Holders


def test_udev_has_its_time_however_long_lvm_took(monkeypatch):
    monkeypatch.setattr(activation, "_SETTLING", 1.0)
    monkeypatch.setattr(Holders, "name", lambda _self, _number: "process 7 (systemd-udevd)")
    opened = {"a": 0, "b": 1}
    now = itertools.count(step=0.1)
    monkeypatch.setattr(activation.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(activation.time, "sleep", lambda _seconds: None)

    class Slow:
        group = "vg"

        def run(self, *words, **_options):
            for _ in range(100):
                next(now)
            for name in [word.partition("/")[2] for word in words if "/" in word]:
                del opened[name]

    class Mapper:
        looks = 0

        def present(self, names):
            return names

        def device(self, name):
            volume = name.partition("-")[2]
            self.looks += volume == "b"
            if self.looks == 4:
                opened["b"] = 0
            return Device(number=1, opened=opened[volume]) if volume in opened else None

    assert deactivate(Slow(), Mapper(), ["a", "b"]) == {"a": None, "b": None}
