"""Critical semantic-consistent learning for domain-adaptive segmentation, fast.

    from cscl_fast import ops

    labels = ops.soft_pseudo_labels(logits, thresholds)

`python -m cscl_fast.train` adapts a network, `python -m cscl_fast.info` says what is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cscl_fast._version import __version__

if TYPE_CHECKING:
    from cscl_fast import backends, data, models, ops, scenes
    from cscl_fast.backends import use_backend
    from cscl_fast.config import Config
    from cscl_fast.trainer.cscl import CSCL
    from cscl_fast.trainer.source_only import SourceOnly

__all__ = [
    "CSCL",
    "Config",
    "SourceOnly",
    "__version__",
    "backends",
    "data",
    "models",
    "ops",
    "scenes",
    "use_backend",
]

# Imported when first asked for: `import cscl_fast` alone does not wait for PyTorch.
_NAMES = {
    "CSCL": "cscl_fast.trainer.cscl",
    "Config": "cscl_fast.config",
    "SourceOnly": "cscl_fast.trainer.source_only",
    "use_backend": "cscl_fast.backends",
}
_PARTS = ("backends", "data", "models", "ops", "scenes", "trainer")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _PARTS:
        return importlib.import_module(f"cscl_fast.{name}")
    raise AttributeError(f"module 'cscl_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
