"""shared stands alone, and the two doors never know of each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"shared": {"mvrecon", "pointrecon", "scripts"}, "mvrecon": {"pointrecon"}, "pointrecon": {"mvrecon"}}


def imported(source: str) -> set[str]:
    """First parts of the names of all modules that the source imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add((node.module or "").split(".")[0])
    return names


def test_imports_are_found_wherever_they_hide():
    assert imported("import os.path\ndef f():\n    from mvrecon.scene import Scene\n") == {"os", "mvrecon"}


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_package_imports_what_it_must_not_know(package: str):
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 5
    offenders = {str(f.relative_to(ROOT)): imported(f.read_text()) & FORBIDDEN[package] for f in files}
    assert not {name: found for name, found in offenders.items() if found}
