"""An update: forwards, losses, backward passes, and the step of one player or of all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from cscl_fast.trainer.optimizers import Optimizers
from cscl_fast.trainer.precision import Precision
from cscl_fast.trainer.processes import Processes, Shared
from cscl_fast.trainer.stopwatch import Stopwatch

Losses = dict[str, Tensor]  # scalars, float32
Values = dict[str, float]
Shares = dict[str, Tensor]  # scalars, float32: what part of the whole step's mean this is

GRADIENT = "gradient"  # in the place of a loss's name
SKIPPED_IN_A_ROW = 50  # a scale that starts at 2^16 is below 1 after 17


class DivergedError(RuntimeError):
    """A loss or a gradient is not finite.

    Attributes:
        term: the name of the loss, as in metrics.csv; or "gradient".
        value: what it, or the gradient's norm, is: nan or an infinity.
        updated: the players that this step had updated before, from what was finite;
            empty with the joint schedule. Nothing else was updated.
        paths: files of the batch, if it has any.
    """

    def __init__(
        self,
        term: str,
        value: float,
        updated: Sequence[str] = (),
        paths: Sequence[str] = (),
        why: str = "",
    ) -> None:
        self.term, self.value = term, value
        self.updated, self.paths = tuple(updated), tuple(paths)
        before = f"; before it this step had updated {', '.join(updated)}" if updated else ""
        what = "the gradient" if term == GRADIENT else f"the loss '{term}'"
        super().__init__(f"{what} is {value}; it updated no weight{before}{why}")


class Part(Protocol):
    """What one forward takes of a step: all of it, or one of its `accumulate` micro-batches."""

    @property
    def shares(self) -> Shares | None: ...  # None: it is the whole step
    @property
    def paths(self) -> list[str]: ...


AnyPart = TypeVar("AnyPart", bound=Part)


class Arriving:
    """Numbers on their way to the host; who asks for them later does not wait for what follows."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers.detach().to("cpu", non_blocking=True)
        self.arrived: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self.arrived = torch.cuda.Event()
            # Which computes them and copies them, also where another GPU is the current one.
            self.arrived.record(torch.cuda.current_stream(numbers.device))

    def tolist(self) -> list[Any]:
        if self.arrived is not None:
            self.arrived.synchronize()
        found: list[Any] = self.numbers.tolist()
        return found


class Reading:
    """Losses, each times its share: what a part of a step adds to those of the whole step."""

    def __init__(self, losses: Losses, shares: Shares | None) -> None:
        self.names = list(losses)
        numbers = torch.stack([loss.detach().float() for loss in losses.values()])
        if shares is not None:
            numbers = numbers * torch.stack([shares[name] for name in losses])
        self.numbers = Arriving(numbers)

    def values(self) -> Values:
        return dict(zip(self.names, self.numbers.tolist(), strict=True))


class Update(Generic[AnyPart]):
    """The updates of one training step, made one after the other by its schedule.

    Called with a player and what its losses are, it takes them for each part of the step, adds up
    the gradients of the objective and steps the player's optimizer. Gradients of a part count by
    its shares, so that they are those of all parts in one batch (`Players.counts`).

    Args:
        parts: what the step consists of.
        objective: the scalar that losses, counted by shares, are learned from.
        shared: by the name of the player, what its gradients are added up by over the processes.

    Raises (when called):
        DivergedError: a loss or a gradient is not finite; nothing is updated with it. With float16
            this skips the update instead, unless it has skipped `SKIPPED_IN_A_ROW` of them.
    """

    def __init__(
        self,
        parts: Sequence[AnyPart],
        objective: Callable[[Losses, Shares | None], Tensor],
        optimizers: Optimizers,
        precision: Precision,
        stopwatch: Stopwatch,
        processes: Processes | None = None,
        shared: Mapping[str | None, Shared] | None = None,
    ) -> None:
        self.parts = parts
        self.objective = objective
        self.optimizers = optimizers
        self.precision = precision
        self.stopwatch = stopwatch
        self.processes = processes or Processes.alone()
        self.shared = shared or defaultdict(lambda: Shared(self.processes))
        self.values: Values = {}  # every loss so far, over the whole step
        self.updated: list[str] = []  # players
        self.overflow: tuple[str, float] = (GRADIENT, math.nan)  # what made the last skip

    def __call__(self, player: str | None, losses_of: Callable[[AnyPart], Losses]) -> None:
        """Update `player`, or with None all of them, by the losses of each part."""
        self.optimizers.zero_grad()
        self.overflow = (GRADIENT, math.nan)
        shared = self.shared[player]
        readings = []
        for part in self.parts:
            with self.stopwatch("losses"):
                last = part is self.parts[-1]  # after whose backward pass gradients are added up
                with nullcontext() if last else shared.alone(), self.precision.autocast():
                    losses = shared(losses_of, part)
                objective = self.objective(losses, part.shares)
                readings.append(Reading(losses, part.shares))
            with self.stopwatch("backward"), self.processes.watching("a backward pass"):
                self.precision.backward(objective)
            del losses, objective  # the graph of one part at a time
        shared.require_all()
        with self.stopwatch("optimizer"):
            found = [reading.values() for reading in readings]
            if self._all_finite(found):
                taken = self._step(player, found)
            else:
                self.precision.skip(player)
                taken = False
            if taken:
                self.updated += self.optimizers.players if player is None else [player]
            elif self.precision.skipped_in_a_row(player) >= SKIPPED_IN_A_ROW:
                term, value = self.overflow
                whose = "" if player is None else f" of the {player}"
                why = f"; {SKIPPED_IN_A_ROW} updates in a row{whose} were skipped for such a reason"
                paths = self._paths(term, found)
                raise DivergedError(term, value, self.updated, paths, why)

    def _all_finite(self, found: Sequence[Values]) -> bool:
        """Whether the update may go on; False, with float16 only: a loss is not finite.

        All processes come to the same answer.
        """
        whole: Values = {}
        for values in found:
            for term, value in values.items():
                whole[term] = whole.get(term, 0.0) + value
        whole = self.processes.add_up(whole)
        for term, value in whole.items():
            if not math.isfinite(value):
                self.overflow = (term, value)
                if not self.precision.scales:
                    self.optimizers.zero_grad()
                    raise DivergedError(term, value, self.updated, self._paths(term, found))
        self.values |= whole
        return all(map(math.isfinite, whole.values()))

    def _step(self, player: str | None, found: Sequence[Values]) -> bool:
        """Step; whether it was taken. With a gradient that is not finite no weight moves.

        A gradient scaler (float16) looks at the gradients itself. Else their norms are asked for:
        behind a step that waits for its turn on the GPU already and refrains from it by itself, or
        before it.
        """
        if self.precision.scales:
            return self.precision.step(self.optimizers, player)
        norms = self.optimizers.gradient_norms(player)
        arriving = Arriving(norms)
        refrains = self.optimizers.can_refrain(player)
        if refrains:
            self.optimizers.step(player, unless=(~norms.isfinite()).any().float())
        bad = {
            name: norm
            for name, norm in zip(self.optimizers.names(player), arriving.tolist(), strict=True)
            if not math.isfinite(norm)
        }
        if bad:  # in all processes: the gradients are sums over them
            self.optimizers.zero_grad()
            whose = f"; it is that of the {' and the '.join(bad)}"
            paths = self._paths(GRADIENT, found)
            value = next(iter(bad.values()))
            raise DivergedError(GRADIENT, value, self.updated, paths, whose)
        if not refrains:
            self.optimizers.step(player)
        return True

    def _paths(self, term: str, found: Sequence[Values]) -> list[str]:
        """Files of the parts, of all processes, of which this loss is not finite; if none, of all.

        (Of a gradient nobody knows whose it is.)
        """
        pairs = list(zip(self.parts, found, strict=True))
        bad = [part for part, values in pairs if not math.isfinite(values.get(term, 0.0))]
        told = self.processes.gather((_files(bad), _files(self.parts)))
        of_bad, of_all = ([path for one in told for path in one[i]] for i in (0, 1))
        return of_bad or of_all


def _files(parts: Sequence[Part]) -> list[str]:
    return [path for part in parts for path in part.paths]


def shares_of(
    counts: Sequence[dict[str, Tensor]], processes: Processes | None = None
) -> list[Shares]:
    """Each part's share of every mean, from what the part counts: n_i / Σ n; 0 where Σ n is 0.

    Σ is over the parts of all processes.
    """
    counted = torch.stack([torch.stack(list(map(Tensor.long, c.values()))) for c in counts])
    total = (processes or Processes.alone()).sum(counted.sum(0))
    shares = counted / total.clamp(min=1)
    return [dict(zip(counts[0], row.unbind(), strict=True)) for row in shares]


class Remembered:
    """The buffers of networks as they were, for a step that comes to nothing.

    A forward moves the running statistics of batch normalisations and running centroids before
    anybody knows whether its losses and gradients are finite.
    """

    def __init__(self, networks: nn.Module) -> None:
        self.buffers = list(networks.buffers())
        self.copies = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def save(self) -> None:
        if self.buffers:
            torch._foreach_copy_(self.copies, self.buffers)

    @torch.no_grad()
    def restore(self) -> None:
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.copies)
