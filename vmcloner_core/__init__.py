"""vmcloner: mass clones of virtual machines, from templates, for automated testing.

What an embedder needs is here; see :class:`Engine`. Names are imported when they are first used,
so that a plugin which needs the model alone, or a shell that prints its help, doesn't pay for all.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine
    from vmcloner_core.errors import VmclonerError
    from vmcloner_core.hosts.opening import open_hosts
    from vmcloner_core.machine import Machine
    from vmcloner_core.model import Clone, CloneMode, SnapshotAim, State
    from vmcloner_core.plan import OnFailure, Plan, Readiness, RunResult, Sizes
    from vmcloner_core.pool_calls import PoolMember
    from vmcloner_core.pools import Pool, PoolReset
    from vmcloner_core.request import CreateRequest, TargetRequest
    from vmcloner_core.results import check_result

_HOMES = {
    "Clone": "model",
    "CloneMode": "model",
    "CreateRequest": "request",
    "Engine": "engine",
    "Machine": "machine",
    "OnFailure": "plan",
    "Plan": "plan",
    "Pool": "pools",
    "PoolMember": "pool_calls",
    "PoolReset": "pools",
    "Readiness": "plan",
    "RunResult": "plan",
    "Sizes": "plan",
    "SnapshotAim": "model",
    "State": "model",
    "TargetRequest": "request",
    "VmclonerError": "errors",
    "check_result": "results",
    "open_hosts": "hosts.opening",
}

__all__ = [
    "Clone",
    "CloneMode",
    "CreateRequest",
    "Engine",
    "Machine",
    "OnFailure",
    "Plan",
    "Pool",
    "PoolMember",
    "PoolReset",
    "Readiness",
    "RunResult",
    "Sizes",
    "SnapshotAim",
    "State",
    "TargetRequest",
    "VmclonerError",
    "check_result",
    "open_hosts",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"vmcloner_core.{_HOMES[name]}"), name)
