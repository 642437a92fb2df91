"""Shapes and types of every public function are checked while the tests run; real data is found here."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# An int is good where a float is wanted, as for mypy.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
REPOSITORY = Path(__file__).resolve().parents[1]


KERNELS = (
    "shared.brick_kernels",
    "pointrecon.winding",
    "mvrecon.fused_render",
    "mvrecon.propose_cpu",
    "shared.encoding.cpu",
    "shared.encoding.gpu",
    "shared.fused",
    "shared.lazy_adam",
)


class Unchecked(MetaPathFinder):
    """Imports the kernels as they are: numba cannot compile a function that a checker has wrapped."""

    def find_spec(self, fullname, path, target=None):
        return PathFinder.find_spec(fullname, path, target) if fullname in KERNELS else None


# Before anything imports numba: the threading layer that every platform has.
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")
# Before anything imports triton: without a GPU its interpreter runs the kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Before anything imports the packages: only modules imported later are checked.
install_import_hook(["shared", "mvrecon", "pointrecon"], f"{__name__}.checked")
sys.meta_path.insert(0, Unchecked())


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    """The same sums on every machine, and no test leaves its own number of threads behind."""
    torch.set_num_threads(2)


@pytest.fixture
def one_thread(_two_threads: None) -> None:
    """A few hundred points are not worth a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data: $ISOPULL_DATA, or shared/data beside the repository."""
    root = Path(os.environ.get("ISOPULL_DATA", REPOSITORY.parent / "shared" / "data")).resolve()
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set ISOPULL_DATA to its folder")
    return root
