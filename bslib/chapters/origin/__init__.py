"""Beyond the paper: where the smoothness comes from, and why it ends."""
