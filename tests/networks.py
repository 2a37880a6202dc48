"""A double of a hypervisor's networks."""

from vmcloner_core.drivers import NetworkInterface
from vmcloner_core.model import Network, NetworkChange


class Networks(NetworkInterface):
    """Networks that are only kept."""

    def __init__(self):
        self.there = {}

    def inspect(self):
        return tuple(self.there.values())

    def prepare(self, request):
        kind = "bridge" if request.bridge else "network"
        old = self.there.get(request.name)
        new = Network(
            name=request.name,
            kind=kind,
            active=True,
            ours=True,
            addresses=request.count,
            lab=request.lab if old is None else old.lab,
        )
        if not request.dry_run:
            self.there[request.name] = new
        steps = () if old == new else ("define",) if old is None else ("redefine",)
        return NetworkChange(network=new, steps=steps)

    def remove(self, request):
        gone = self.there.pop(request.name, None)
        steps = () if gone is None else ("undefine",)
        return NetworkChange(network=Network(name=request.name, active=False), steps=steps)
