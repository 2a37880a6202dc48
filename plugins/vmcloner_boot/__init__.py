"""The boot providers that ask nobody else: the clone's own disk, or a kernel of the host."""
