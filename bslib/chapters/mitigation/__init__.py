"""Beyond the paper: what mitigations do to the surface."""
