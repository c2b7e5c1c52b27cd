"""The loss, as other programs may use it: `from needle.losses import LossConfig, Signal, distillation_loss`."""

from needle.losses.loss import Loss, LossConfig, Signal, TokenWeights, distillation_loss

__all__ = ["Loss", "LossConfig", "Signal", "TokenWeights", "distillation_loss"]
