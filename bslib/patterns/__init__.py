"""Patterns that are crafted after training: no network has seen them, and yet some act like a trigger (Sec. 3.2.4)."""
