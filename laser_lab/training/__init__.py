"""Training: batches, objectives, the trainer, and :func:`train`."""

from laser_lab.training.run import train
from laser_lab.training.trainer import NonFiniteLoss

__all__ = ["NonFiniteLoss", "train"]
