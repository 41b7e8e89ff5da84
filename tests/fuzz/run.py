"""Coverage-guided fuzzing of the wire readers: `python tests/fuzz/run.py [TARGET ...] [--runs N]`.

Each target runs in a process of its own. Where one fails, its last lines name the file with the input,
and `--replay FILE` runs it again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

TARGETS = ("traces", "logs", "metrics")
LONGEST = 2048
"""Bytes of an input: a few spans."""

REFUSED_KEPT = 8
"""One in so many inputs that both refuse may be changed further."""

SECONDS = 10
"""An input that takes longer hangs. Most take a millisecond."""


def main() -> int:
    parser = argparse.ArgumentParser(description="fuzz the wire readers")
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default"
    )
    parser.add_argument("--runs", type=int, default=200_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer; 0 draws one")
    parser.add_argument("--replay", metavar="FILE", help="run the one target with this input only")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if given.here:
        return fuzz(given.targets[0], given.runs, given.seed, given.replay)
    environ = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, __file__, "--here", "--runs", str(given.runs), "--seed", str(given.seed)]
    command += ["--replay", given.replay] if given.replay else []
    failed = 0
    for target in given.targets or TARGETS:
        failed += subprocess.run([*command, target], env=environ, check=False).returncode != 0
    return min(failed, 1)


def fuzz(name: str, runs: int, seed: int, replay: str | None) -> int:
    """Run one target in this process, which ends with it."""
    import atheris
    import plain

    with atheris.instrument_imports(include=["tidegauge.wire"]):
        plain.replace_instructions()
        import targets as properties

        from tidegauge.wire import logs, points, traces  # noqa: F401

        target = properties.targets()[name]
    import corpus
    from mutate import mutated

    began = time.monotonic()
    executions = 0

    def once(raw: bytes) -> int:
        nonlocal executions
        executions += 1
        refused = target.refused
        target(raw)
        if executions == runs:
            took = time.monotonic() - began
            print(
                f"{name}: {runs} executions, {runs / took:.0f} a second: {target.agreed} read as"
                f" protobuf does, {target.refused} refused by both",
                flush=True,
            )
        # Most of what becomes of a refused input is refused again, where it was the first time.
        return -1 if target.refused > refused and executions % REFUSED_KEPT else 0

    def mutator(raw: bytes, longest: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.1:
            return atheris.Mutate(raw, longest)
        changed = mutated(raw, random, lambda part: atheris.Mutate(part, len(part) + 8))
        return changed[:longest]

    if replay is not None:
        target(Path(replay).read_bytes())
        print(f"{name}: {replay} passes")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for place, request in enumerate(getattr(corpus, name)()):
            Path(folder, str(place)).write_bytes(request)
            target(request)
        options = [f"-runs={runs}", f"-max_len={LONGEST}", f"-timeout={SECONDS}", "-mutate_depth=2"]
        options += [f"-seed={seed}", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options, folder], once, custom_mutator=mutator)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
