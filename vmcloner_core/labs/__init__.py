"""Labs: several fleets, networks and images in one file; see docs/labs.md.

A lab is a thin layer above the engine: its file is read (:mod:`~vmcloner_core.labs.reading`),
compared with what the host has (:mod:`~vmcloner_core.labs.compare`), and what differs becomes
requests in their order (:mod:`~vmcloner_core.labs.apply`). Labels are the only state here too: what
a lab has made carries its name from birth.
"""

from vmcloner_core.labs.model import Change, Lab, LabFleet, LabImage, LabNetwork, LabResult
from vmcloner_core.labs.reading import read_lab

__all__ = [
    "Change",
    "Lab",
    "LabFleet",
    "LabImage",
    "LabNetwork",
    "LabResult",
    "read_lab",
]
