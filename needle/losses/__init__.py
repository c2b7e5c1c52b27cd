"""The one loss of every arm, and the signals it reads; it stands alone.

from needle.losses import LossConfig, Signal, distillation_loss
"""

from needle.losses.loss import Loss, LossConfig, Signal, TokenWeights, distillation_loss

__all__ = ["Loss", "LossConfig", "Signal", "TokenWeights", "distillation_loss"]
