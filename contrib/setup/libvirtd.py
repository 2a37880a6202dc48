#!/usr/bin/env python3
"""Provide a running libvirtd for a checkout; see plugins/vmcloner_libvirt/libvirtd.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins"))

from vmcloner_libvirt.libvirtd import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
