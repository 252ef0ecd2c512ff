"""The end of a run: its tables, curves, panels, and the answer in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, nan

from torch import Tensor

from cscl_fast.models import SegmentationModel
from cscl_fast.trainer import checkpoint, convergence
from cscl_fast.trainer.evaluation import table
from cscl_fast.trainer.keeper import Keeper
from cscl_fast.trainer.labelling import Labeller
from cscl_fast.trainer.observers import Observer
from cscl_fast.trainer.panels import draw_panels
from cscl_fast.trainer.players import Players
from cscl_fast.trainer.rows import ADAPTED, SOURCE_ONLY
from cscl_fast.trainer.transferability_panels import draw_transferability


@dataclass
class Adapted:
    """What a run is left with after its adaptation."""

    players: Players
    labeller: Labeller


def finish(
    keeper: Keeper, adapted: Adapted | None, observer: Observer, say: Callable[[str], None]
) -> None:
    """Write what a finished run leaves, and say how it went.

    Args:
        adapted: None where the run ends after the source-only training.
    """
    config, folder = keeper.config, keeper.folder
    scores = keeper.scores()
    text = table(scores)
    (folder / "results.txt").write_text(text + "\n", encoding="utf-8")
    markdown = table(scores, markdown=True)
    (folder / "results.md").write_text(markdown + "\n", encoding="utf-8")
    keeper.records.curves()
    if adapted is not None:
        convergence.write(folder)
    if adapted is not None and config.panels:
        _panels(keeper, adapted.players.model)
        observer.panels(folder / "panels")
        maps = folder / "transferability"
        if draw_transferability(
            maps, adapted.players, keeper.world, adapted.labeller, config.panels
        ):
            observer.panels(maps)
    say("\nIoU in percent on the evaluation images of the target:\n" + text)
    before, after = (scores[row].mean if row in scores else nan for row in (SOURCE_ONLY, ADAPTED))
    if not isnan(before + after):  # nan: without labels, too
        say(f"\nmIoU {before:.1f} (source only) -> {after:.1f} (CSCL): {after - before:+.1f}")
    say(f"Run folder: {folder}")


def _panels(keeper: Keeper, model: SegmentationModel) -> None:
    source_state: dict[str, Tensor] = checkpoint.load(keeper.path("source"))["model"]
    draw_panels(
        keeper.folder / "panels",
        keeper.world,
        model,
        source_state,
        keeper.config.panels,
        thresholds=keeper.records.last_thresholds(keeper.world.device),
        gamma=keeper.config.adaptation.gamma,
    )
