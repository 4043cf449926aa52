"""Folders that were saved before version 0.2 name their classes here."""

from laser_lab.encoder import LatentEncoder, LatentRetriever

__all__ = ["LatentEncoder", "LatentRetriever"]
