"""How W depends on n and sigma (Sec. 3.1, Fig. 2)."""
