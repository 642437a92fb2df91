"""Clocks and scales for scripts/benchmark.py: medians, peak memory, where a step's time goes, what a machine can do."""

import contextlib
import ctypes
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.encoding import HashGrid

# What has been measured so far, by name, as it goes into the JSON file.
Figures = dict[str, Any]


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median time of `run` after one call that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """p of seconds ~ size^p by least squares: 1 is linear growth."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def machine() -> Figures:
    """What the floors are computed from: bytes copied and products made a second."""
    source = torch.rand(32_000_000)
    target, matrix = torch.empty_like(source), torch.rand(1024, 1024)
    copied = 2 * source.nbytes / median_seconds(lambda: target.copy_(source), 5)
    products = 2 * 1024**3 / median_seconds(lambda: matrix @ matrix, 10)
    return {"threads": torch.get_num_threads(), "copy_gb_s": copied / 1e9, "matrix_gflop_s": products / 1e9}


def encode_bytes(points: int, grid: HashGrid, backward: bool) -> int:
    """Bytes that an encoding with Jacobian must move: eight corners of two floats a level, read forward, then read and
    written backward; and features and Jacobian, once each way."""
    corners = 4 * points * grid.levels * 8 * grid.features
    outputs = 4 * points * 4 * grid.levels * grid.features
    return (3 * corners + 2 * outputs) if backward else corners + outputs


def floor_ms(figures: Figures, moved: float, products: float = 0.0) -> float:
    """The least time for so many bytes and multiplications-and-additions on the machine measured in `figures`."""
    known = figures["machine"]
    return 1e3 * (moved / (1e9 * known["copy_gb_s"]) + 2 * products / (1e9 * known["matrix_gflop_s"]))


@contextlib.contextmanager
def peak_memory(figures: Figures, name: str) -> Iterator[None]:
    """Writes how many MB (2^20 bytes) of resident memory this process took on the way, at most, into `figures`."""
    pages, done = Path("/proc/self/statm"), threading.Event()

    def resident() -> int:
        return int(pages.read_text().split()[1])

    # What was freed before would serve again, and not be seen.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    before = most = resident()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        figures[name] = (most - before) * 4096 / 2**20


class Phases:
    """Time spent in some methods, each wrapped while the `with` lasts; inner ones count as part of the outer ones."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._undo: list[tuple[Any, str]] = []

    def watch(self, owner: Any, method: str, name: str) -> None:
        """From now on add the time in `owner.method` to `name`."""
        original = getattr(owner, method)
        self.seconds[name] = 0.0

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = original(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - start
            return result

        self._undo.append((owner, method))
        setattr(owner, method, timed)

    def __enter__(self) -> "Phases":
        return self

    def __exit__(self, *_: object) -> None:
        for owner, method in self._undo:
            delattr(owner, method)
