"""A run is a folder, and each file in it is either whole or absent: everything is written aside and moved into place.

config.yaml      complete, re-runnable          checkpoints/   see `shared.checkpoint`
metrics.jsonl    one JSON object per line       previews/      NAME_STEP.png
events.out.*     the same for TensorBoard
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared import ranks
from shared.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file beside `path` for writing, mode "w" (UTF-8) or "wb"; on success flush it to disk and move it there.

    A reader, or a run killed at any moment, sees the old file or the new one. The folder is made if it is missing.
    Raises UserError when the place cannot hold a file, OSError naming `path` when the disk gives out.
    """
    path = Path(path)
    make_folder(path.parent)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with blaming(path):
            with open(aside, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image, uint8 RGB (H, W, 3), to a PNG file, as `atomic_write` does."""
    with atomic_write(path) as file:
        Image.fromarray(image).save(file, format="PNG")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises UserError when that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror}); choose another place") from error


class Run:
    """The open folder of a run in progress; only one process writes to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.main = folder  # whose --resume goes on with this run
        self._metrics = folder / "metrics.jsonl"
        self._writer: SummaryWriter | None = None
        self._first_step: int | None = None

    def write_config(self, config_yaml: str) -> None:
        """Write config.yaml. On resume only once the checkpoint has been found to fit: the old one is gone then."""
        with atomic_write(self.folder / "config.yaml", "w") as file:
            file.write(config_yaml)

    def log(self, step: int, scalars: Mapping[str, float], seconds: float) -> None:
        """Append one line {step, seconds of training, scalars...} to metrics.jsonl and the same to TensorBoard.

        JSON has no word for infinities and not-a-number: they become null.
        """
        numbers = {name: float(value) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        line = json.dumps({"step": step, "seconds": round(seconds, 3), **finite}) + "\n"
        with blaming(self._metrics), open(self._metrics, "a", encoding="utf-8") as file:
            file.write(line)  # one write, so that a killed run leaves whole lines
        for name, value in numbers.items():
            self.tensorboard.add_scalar(name, value, step)

    def image(self, name: str, step: int, image: NDArray[np.uint8]) -> Path:
        """Write a preview, uint8 RGB (H, W, 3), to previews/NAME_STEP.png and to TensorBoard; returns its path."""
        path = self.folder / "previews" / f"{name}_{step:08d}.png"
        save_png(path, image)
        self.tensorboard.add_image(name, image, step, dataformats="HWC")
        return path

    def rewind(self, step: int) -> None:
        """Forget what was logged after this step (a resumed run does those steps again) and any torn last line."""
        self.close()
        self._first_step = step + 1
        if self._metrics.exists():
            lines = self._metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            with atomic_write(self._metrics, "w") as file:
                file.writelines(f"{line}\n" for line in lines if _logged_step(line) <= step)

    @property
    def tensorboard(self) -> SummaryWriter:
        """The writer of TensorBoard events, made at its first use because the import takes seconds."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._first_step)
        return self._writer

    def close(self) -> None:
        """Flush and close the log of TensorBoard."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class SilentRun(Run):
    """The run as the ranks see it that do not write."""

    def write_config(self, config_yaml: str) -> None:
        """Nothing."""

    def log(self, step: int, scalars: Mapping[str, float], seconds: float) -> None:
        """Nothing."""

    def image(self, name: str, step: int, image: NDArray[np.uint8]) -> Path:
        """Nothing; returns the run's folder."""
        return self.folder

    def rewind(self, step: int) -> None:
        """Nothing."""


def open_run(folder: Path, resume: bool) -> Run:
    """Make the folder of a new run, or open that of an earlier one; of several ranks the first one writes to it.

    Raises UserError as `check_run` does, or when the folder cannot be written.
    """
    ranks.barrier()  # all have looked into the folder before one writes to it
    if not ranks.is_first():
        return SilentRun(folder)
    check_run(folder, resume)
    make_folder(folder)
    return Run(folder)


def check_run(folder: Path, resume: bool) -> None:
    """Raise UserError when a new run would mix with existing files, or when there is nothing to resume."""
    if resume and not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: holds no run to resume; give the folder of an earlier run, or drop --resume")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; choose another --out, or continue its run with --resume")


def _logged_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Name the file in errors of the disk that come without a name, as those of write() do."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
