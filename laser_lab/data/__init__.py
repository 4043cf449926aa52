"""Data: readers of local and hub data, the controlled world, bundled sets."""
