"""vmcloner's vocabulary as values: frozen, typed, in integer bytes and seconds.

Nothing here does I/O. Drivers receive everything that they need as these values.
"""

from vmcloner_core.model.clone import Access, Clone, CloneSpec, Values
from vmcloner_core.model.domain import (
    MAX_CMDLINE,
    BootConfig,
    Domain,
    DomainInventory,
    DomainSpec,
    Nic,
    State,
    check_mac,
)
from vmcloner_core.model.host import (
    BackendTable,
    Host,
    HostResources,
    Network,
    NetworkChange,
    NetworkRequest,
    network_key,
)
from vmcloner_core.model.identity import (
    Identity,
    Interface,
    Seed,
    clone_generation,
    clone_mac,
    clone_uuid,
)
from vmcloner_core.model.labels import LABEL_VERSION, Labels
from vmcloner_core.model.leftover import Leftover
from vmcloner_core.model.outcome import Check, Outcome, Status
from vmcloner_core.model.template import (
    MAX_DISKS,
    DiskSpec,
    DomainOptions,
    IdentitySpec,
    ImageSource,
    KernelSpec,
    NicSpec,
    SshSpec,
    Template,
)
from vmcloner_core.model.volume import (
    AS_IT_COMES,
    Capacity,
    CloneMode,
    CloneRequest,
    Copying,
    Origin,
    Progress,
    Volume,
    VolumeProgress,
    untold,
)

__all__ = [
    "AS_IT_COMES",
    "LABEL_VERSION",
    "MAX_CMDLINE",
    "MAX_DISKS",
    "Access",
    "BackendTable",
    "BootConfig",
    "Capacity",
    "Check",
    "Clone",
    "CloneMode",
    "CloneRequest",
    "CloneSpec",
    "Copying",
    "DiskSpec",
    "Domain",
    "DomainInventory",
    "DomainOptions",
    "DomainSpec",
    "Host",
    "HostResources",
    "Identity",
    "IdentitySpec",
    "ImageSource",
    "Interface",
    "KernelSpec",
    "Labels",
    "Leftover",
    "Network",
    "NetworkChange",
    "NetworkRequest",
    "Nic",
    "NicSpec",
    "Origin",
    "Outcome",
    "Progress",
    "Seed",
    "SshSpec",
    "State",
    "Status",
    "Template",
    "Values",
    "Volume",
    "VolumeProgress",
    "check_mac",
    "clone_generation",
    "clone_mac",
    "clone_uuid",
    "network_key",
    "untold",
]
