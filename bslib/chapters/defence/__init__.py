"""Beyond the paper: W as a defence, for an image, a batch and a network."""
