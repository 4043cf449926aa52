"""Probes read :class:`laser_lab.Thoughts`; they never train and never plot."""
