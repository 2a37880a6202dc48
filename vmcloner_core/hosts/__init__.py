"""Many hosts: one engine beside each, and a controller that places clones and merges results.

The controller asks, the engines act: labels and records on each host stay the only truth. What
crosses between them is JSON (:mod:`vmcloner_core.hosts.wire`), by a carrier
(:mod:`vmcloner_core.hosts.carrier`).
"""
