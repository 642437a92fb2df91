"""What a command's body may raise, and the one line and exit code that users get for it."""

import errno

import pytest

from shared.errors import UserError, main_guard

CASES = [
    (UserError("a.ply: is empty;\n give another"), 2, "a.ply: is empty; give another"),
    (OSError(errno.ENOSPC, "No space", "out/mesh.ply"), 2, "out/mesh.ply: the disk is full"),
    (OSError(errno.EIO, "Input/output error", "x"), 1, "not foreseen"),
    (MemoryError(), 2, "too little"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "too little"),
    (RuntimeError("sizes differ"), 1, "not foreseen"),
    (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


def raises(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(("error", "code", "words"), CASES)
def test_one_line_and_a_code(error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]):
    assert main_guard(lambda: raises(error)) == code
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1


@pytest.mark.parametrize("error", [case[0] for case in CASES])
def test_debug_keeps_the_traceback(error: BaseException):
    with pytest.raises(type(error)):
        main_guard(lambda: raises(error), debug=True)


def test_a_body_that_ends_well():
    assert main_guard(lambda: None) == 0 and main_guard(lambda: 130) == 130
