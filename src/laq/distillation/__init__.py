"""What stays in float beside the codes, tuned after rounding: the original teaches the quantized network.

Norm gains and biases take no more bytes whatever their values are. They are trained against the original's
logits on calibration data (Hinton, Vinyals and Dean, arXiv:1503.02531), codes and scales as they were packed.
"""

from __future__ import annotations

from laq.distillation.state import State
from laq.distillation.train import Distillation, distill, tunable

__all__ = ["Distillation", "State", "distill", "tunable"]
