"""vmcloner: mass clones of virtual machines, from templates, for automated testing."""
