"""The success of a trigger and the smoothness around it (Sec. 3.2.3, Fig. 5)."""
