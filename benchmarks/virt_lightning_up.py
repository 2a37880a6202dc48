"""What ``virt-lightning up`` does until it starts its guests: see README.md beside this file.

Run by the Python of an environment that has virt-lightning, with the URI, the storage pool, a file
with a public key, and the number of guests.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from virt_lightning import api
from virt_lightning.configuration import Configuration
from virt_lightning.virt_lightning import LibvirtHypervisor


class Definer(LibvirtHypervisor):
    """Makes disks and domains, and neither cloud-init's ISO nor anything that runs."""

    def start(self, domain, metadata_format):
        pass


def main() -> None:
    uri, pool, key, count = sys.argv[1:]
    hypervisor = Definer(api._connect_libvirt(uri))
    hypervisor.storage_pool_obj = hypervisor.conn.storagePoolLookupByName(pool)
    hosts = [
        {"name": f"vl-{number}", "distro": "bench", "memory": 64, "vcpus": 1, "networks": [],
         "disks": [{"size": 1}], "ssh_key_file": key, "username": "bench"}
        for number in range(1, int(count) + 1)
    ]  # fmt: skip
    configuration = Configuration()
    with ThreadPoolExecutor(max_workers=10) as threads:  # as many as it has itself
        for _ in threads.map(
            lambda host: api._start_domain(hypervisor, host, "bench", configuration), hosts
        ):
            pass


if __name__ == "__main__":
    main()
