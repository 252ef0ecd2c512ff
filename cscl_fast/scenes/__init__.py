"""Street scenes that the package draws itself: a flat source world and a photographed target.

Labels are exact: every shape is painted twice, in colour and as what it shows, from far to near.
"""

from __future__ import annotations

from .painter import draw_scene
from .surfaces import SCENE_CLASS_COLORS, SCENE_CLASS_NAMES

__all__ = ["SCENE_CLASS_COLORS", "SCENE_CLASS_NAMES", "draw_scene"]
