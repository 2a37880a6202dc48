"""What the tests of warm forks share: a template, and looks at what is there."""

TEMPLATE = """
hypervisors = ["reference"]
boot = "reference"
memory = "256MiB"
ready = "console:here is the parent"
[image]
path = "image.raw"
[[nics]]
"""
SEEDED = TEMPLATE + '[identity]\nprovider = "cloud-init"\n'
LAB = """
name = "shop"
[fleets.web]
template = "warm"
count = 2
warm = true
ready = "running"
"""


class Killed(BaseException):
    """What a kill -9 leaves is what nothing cleans up."""


def states(engine, fleet):
    return {clone.name: clone.state for clone in engine.list(fleet)}


def memory(engine):
    return engine.host.warm


def leftovers(engine):
    """Return what a call that failed must not leave."""
    folders = [p.name for p in memory(engine).iterdir() if p.name != "forks"]
    images = [o.template for o in engine.origins() if o.template.startswith("warm-")]
    parents = [c.name for c in engine.list() if c.fleet.startswith("warm")]
    return folders, images, parents


def killed(after):
    def call(*words):
        after(*words)
        raise Killed

    return call
