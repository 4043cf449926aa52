"""The explorer: see what a query makes the model think, change a thought, see where retrieval goes."""

from laser_lab.explorer.changes import Change
from laser_lab.explorer.widget import Explorer, explore

__all__ = ["Change", "Explorer", "explore"]
