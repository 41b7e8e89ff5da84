"""Kernels are compiled once, loaded when they are first called, and linked with callers that come later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

INNER = """
from tidegauge.stats.kernel import KERNEL, kernel

@kernel("int64(int64)", **KERNEL)
def twice(number):
    return 2 * number
"""
OUTER = """
from inner import twice
from tidegauge.stats.kernel import KERNEL, kernel

@kernel("int64(int64)", **KERNEL)
def plus(number):
    return twice(number) + {}
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "inner.py").write_text(INNER)

    def run(added: int, program: str) -> str:
        path = tmp_path / "outer.py"
        path.write_text(OUTER.format(added))
        os.utime(path, (added, added))
        agent = Path(__file__).parents[2] / "agent"
        environ = os.environ | {
            "PYTHONPATH": f"{agent}{os.pathsep}{tmp_path}",
            "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        }
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout

    return run


LOADED = "print(len(twice.overloads), len(plus.overloads))"


def test_a_kernel_is_loaded_when_it_is_called_and_its_callees_are_not(run):
    assert run(1, f"from outer import *; {LOADED}") == "1 1\n"  # compiled
    program = f"from outer import *; {LOADED}; print(plus(20)); {LOADED}; print(plus(True), twice(4))"
    assert run(1, program) == "0 0\n41\n0 1\n3 8\n"


def test_what_is_loaded_refuses_what_the_signature_does(run):
    run(1, "import outer")
    program = """
from outer import plus
for wrong in (("a",), (1, 2)):
    try:
        plus(*wrong)
    except TypeError:
        print("refused")
"""
    assert run(1, program) == "refused\nrefused\n"


def test_a_caller_compiled_later_has_a_kernel_of_the_cache_inside(run):
    run(1, "import outer")
    assert run(
        2, f"from inner import twice; print(twice(1)); from outer import *; print(plus(20)); {LOADED}"
    ) == ("2\n42\n1 1\n")


def test_threads_that_call_it_first_at_once_all_get_an_answer(run):
    run(1, "import outer")
    program = """
from concurrent.futures import ThreadPoolExecutor
from outer import plus
with ThreadPoolExecutor(8) as pool:
    print(sorted(pool.map(plus, range(8))))
"""
    assert run(1, program) == f"{[2 * number + 1 for number in range(8)]}\n"
