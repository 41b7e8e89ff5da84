"""The fuzzer's own parts: seeds hold, and a reader that does wrong is caught. It runs by `make fuzz`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

PREPARED = """
plain.replace_instructions()
import corpus
import targets
from random import Random
from mutate import mutated
found = targets.targets()
"""


def run(script: str, wrong: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script on the targets, kernels as plain Python; `wrong` spoils the readers first."""
    spoilt = f"import sys; sys.path.insert(0, sys.argv[1]); import plain; {wrong}"
    return subprocess.run(
        [sys.executable, "-c", spoilt + PREPARED + script, str(HERE)],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_seeds_and_their_mutations_hold() -> None:
    script = """
random = Random(1)
for name, target in found.items():
    seeds = getattr(corpus, name)()
    for seed in seeds:
        target(seed)
    assert target.agreed == len(seeds)
    for _ in range(60):
        target(mutated(random.choice(seeds), random, lambda part: part[1:]))
    print(name, target.agreed > len(seeds) + 10)
"""
    result = run(script)
    assert (result.stderr, result.stdout) == ("", "traces True\nlogs True\nmetrics True\n")


@pytest.mark.parametrize(
    ("wrong", "caught"),
    [
        ("plain.load = lambda buf, pos: buf[buf.size]", "plain.OutOfBounds: byte"),
        ("plain.load = lambda buf, pos: int('x')", "AssertionError: the reader refuses"),
        ("plain.swap = lambda value: value", "AssertionError"),
    ],
)
def test_a_reader_that_does_wrong_is_caught(wrong: str, caught: str) -> None:
    result = run("found['traces'](corpus.traces()[0])", wrong)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(caught)
