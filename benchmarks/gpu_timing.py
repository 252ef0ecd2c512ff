"""Time and memory of one function on a GPU, by CUDA events; on the CPU by the clock, to rehearse.

A repetition on a GPU: a buffer larger than the L2 cache is overwritten ("cold"; left out for
"warm"), an event, the function, an event. Nothing waits in between, so the host works ahead while
the GPU overwrites the buffer; where the host is still slower than the GPU, the time is the host's.
What the GPU itself needs is the replay of a CUDA graph, in which no host takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch

Function = Callable[[], Any]


@dataclass
class Timing:
    """Medians in milliseconds."""

    milliseconds: float  # cold L2 on a GPU
    fastest: float  # of the same repetitions
    warm_milliseconds: float | None  # without overwriting; None on the CPU
    repetitions: int


class Clock:
    """Times functions on one device.

    Args:
        device: "cuda" or "cpu".
        seconds: how long one measurement may take, roughly.
    """

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.seconds = device, seconds
        self.flush_bytes = 0
        if device == "cuda":
            cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
            self.flush_bytes = max(4 * cache, 128 << 20)
            self.flush = torch.empty(self.flush_bytes, dtype=torch.uint8, device=device)

    @property
    def method(self) -> dict[str, Any]:
        """How the numbers came about, for the stored result."""
        if self.device == "cpu":
            return {"timer": "perf_counter", "l2": "as it is", "statistic": "median"}
        return {
            "timer": "CUDA events",
            "l2": f"cold: {self.flush_bytes >> 20} MiB overwritten before each repetition; "
            "warm_milliseconds and graph_warm_milliseconds: left out",
            "statistic": "median",
            "warm_up": "3 calls at least",
        }

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _once(self, function: Function) -> float:
        """Seconds of one call, host included."""
        self.synchronize()
        began = perf_counter()
        function()
        self.synchronize()
        return perf_counter() - began

    def _repetitions(self, function: Function, seconds: float) -> int:
        """After the warm-up: as many as fit the time, at least 10 (on the CPU 3), at most 300."""
        if self.device == "cpu":
            return max(3, min(300, int(seconds / max(self._once(function), 1e-6))))
        once = min(self._once(function) for _ in range(3))
        return max(10, min(300, int(seconds / (once + self.flush_bytes / 1e12))))

    def _events(self, function: Function, repetitions: int, *, cold: bool) -> list[float]:
        """Milliseconds of each repetition."""
        pairs = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(repetitions)
        ]
        for begin, end in pairs:
            if cold:
                self.flush.zero_()
            begin.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in pairs]

    def time(self, function: Function, seconds: float | None = None) -> Timing:
        """Of a function that has been called before: what it compiles is there."""
        repetitions = self._repetitions(function, seconds or self.seconds)
        if self.device == "cpu":
            times = [self._once(function) * 1e3 for _ in range(repetitions)]
            return Timing(median(times), min(times), None, repetitions)
        times = self._events(function, repetitions, cold=True)
        warm = self._events(function, max(10, repetitions // 2), cold=False)
        return Timing(median(times), min(times), median(warm), repetitions)

    def replay(self, function: Function) -> tuple[float, float]:
        """Milliseconds of a CUDA graph of the function, cold and warm.

        Raises:
            RuntimeError: it cannot be captured, because it waits for the GPU.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        repetitions = self._repetitions(graph.replay, self.seconds)
        cold = median(self._events(graph.replay, repetitions, cold=True))
        return cold, median(self._events(graph.replay, repetitions, cold=False))

    def peak_bytes(self, function: Function) -> int | None:
        """Device memory that a call takes at its peak, results included; None on the CPU."""
        if self.device == "cpu":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak

    def copy_bytes_per_second(self) -> float:
        """Bytes read and written per second by a copy of a tensor much larger than the caches."""
        size = (1 << 30) if self.device == "cuda" else (1 << 25)
        source = torch.ones(size // 4, device=self.device)
        target = torch.empty_like(source)
        timing = self.time(lambda: target.copy_(source))
        return 2 * size / (timing.milliseconds / 1e3)
