"""What a backdoor does to the surface (Secs. 3.2.1 and 3.2.2, Figs. 3 and 4)."""
