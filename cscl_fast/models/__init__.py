"""The segmentation networks, and the adversarial and transferability networks beside them."""

from cscl_fast.models.average import WeightAverage
from cscl_fast.models.batchnorm import (
    freeze_affine,
    frozen_statistics,
    reestimate_statistics,
    running_statistics,
)
from cscl_fast.models.build import ARCHITECTURES, build_model
from cscl_fast.models.compiled import CompileError, compile_parts
from cscl_fast.models.discriminator import Discriminator
from cscl_fast.models.encoder_with_head import EncoderWithHead
from cscl_fast.models.recompute import checkpoint_activations
from cscl_fast.models.segmentation_model import Features, SegmentationModel
from cscl_fast.models.transferability import TransferabilityCritic, TransferabilityQuantizer
from cscl_fast.models.weights import LoadReport, WeightsError, load_weights

__all__ = [
    "ARCHITECTURES",
    "CompileError",
    "Discriminator",
    "EncoderWithHead",
    "Features",
    "LoadReport",
    "SegmentationModel",
    "TransferabilityCritic",
    "TransferabilityQuantizer",
    "WeightAverage",
    "WeightsError",
    "build_model",
    "checkpoint_activations",
    "compile_parts",
    "freeze_affine",
    "frozen_statistics",
    "load_weights",
    "reestimate_statistics",
    "running_statistics",
]
