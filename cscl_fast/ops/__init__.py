"""The operators of critical semantic-consistent learning.

Every function checks its arguments, picks a backend and computes; see `docs/operators.md`.
"""

from cscl_fast.ops.class_centroid import class_centroids
from cscl_fast.ops.class_threshold import ClassThresholds, class_thresholds
from cscl_fast.ops.pseudo_label_loss import pseudo_label_loss
from cscl_fast.ops.soft_pseudo_label import SoftPseudoLabels, soft_pseudo_labels
from cscl_fast.ops.symmetric_soft_divergence import symmetric_soft_divergence
from cscl_fast.ops.transfer_reward import transfer_reward
from cscl_fast.ops.upsampled_cross_entropy import upsampled_cross_entropy

__all__ = [
    "ClassThresholds",
    "SoftPseudoLabels",
    "class_centroids",
    "class_thresholds",
    "pseudo_label_loss",
    "soft_pseudo_labels",
    "symmetric_soft_divergence",
    "transfer_reward",
    "upsampled_cross_entropy",
]
