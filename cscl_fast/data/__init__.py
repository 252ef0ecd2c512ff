"""Data sets for domain adaptation: published layouts, own folders and drawn scenes."""

from cscl_fast.data.check import DatasetReport, check_dataset
from cscl_fast.data.classes import (
    CITYSCAPES_19,
    IGNORE,
    NTHU_13,
    SYNTHIA_16,
    ClassList,
    published_classes,
    require_same_classes,
    thirteen_of_sixteen,
)
from cscl_fast.data.config import DEFAULT_SIZES, KINDS, DatasetConfig
from cscl_fast.data.dataset import SampleDict, SegmentationDataset, load_image, open_dataset
from cscl_fast.data.decoding import image_size
from cscl_fast.data.errors import DataError
from cscl_fast.data.layouts import list_images
from cscl_fast.data.loading import EpochSampler, InfiniteSampler, make_loader, read_ahead
from cscl_fast.data.visual import colorize, overlay, save_label_png

__all__ = [
    "CITYSCAPES_19",
    "DEFAULT_SIZES",
    "IGNORE",
    "KINDS",
    "NTHU_13",
    "SYNTHIA_16",
    "ClassList",
    "DataError",
    "DatasetConfig",
    "DatasetReport",
    "EpochSampler",
    "InfiniteSampler",
    "SampleDict",
    "SegmentationDataset",
    "check_dataset",
    "colorize",
    "image_size",
    "list_images",
    "load_image",
    "make_loader",
    "open_dataset",
    "overlay",
    "published_classes",
    "read_ahead",
    "require_same_classes",
    "save_label_png",
    "thirteen_of_sixteen",
]
