"""Storage plugin ``files``: a pool is a folder of sparse raw templates and clones' disks."""
