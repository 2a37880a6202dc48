"""A program that holds an image open until its input ends, as a guest does."""

HOLD = """
import sys
from vmcloner_core.stored_ids import KnownPool
from vmcloner_rbd.cluster import Cluster
from vmcloner_rbd.images import Images
from vmcloner_rbd.settings import RbdSettings
from pathlib import Path
conf, keyring, namespace, state, name = sys.argv[1:]
settings = RbdSettings(pool="vms", namespace=namespace, conf=Path(conf), keyring=Path(keyring))
with Images(Cluster(settings, KnownPool(Path(state), "holder"))).open(name, writable=True):
    print("open", flush=True)
    sys.stdin.read()
"""
