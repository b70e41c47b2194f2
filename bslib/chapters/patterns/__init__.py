"""What else smooths the surface (Secs. 3.2.4 and 4, Figs. 6 and 7)."""
