"""The explorer: see what a query makes the model think, change a thought, see where retrieval goes."""

from laser_lab.explorer.explorer import Change, Explorer, explore

__all__ = ["Change", "Explorer", "explore"]
