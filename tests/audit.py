"""Looks the locked dependencies up among known vulnerabilities: `make check` runs it.

Exit status 1 where one is known that [tool.tidegauge.audit] in pyproject.toml does not explain, or where
that explains one which is not there any more. Without a network, or behind a mirror of PyPI that leaves
vulnerabilities out of its answers, nothing is known, and that is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock")

KNOWN = "requests==2.19.0"
"""CVE-2018-18074: who does not know of it does not know of any. Nothing is downloaded: any hash will do."""


def explained(path: Path) -> dict[str, str]:
    """The vulnerabilities that stay, by their name, with the reason."""
    tree = tomllib.loads(path.read_text())
    found: dict[str, str] = tree["tool"]["tidegauge"]["audit"]
    return found


def audit(lock: Path) -> tuple[dict[str, str], str]:
    """What is known of a lock's packages, by its name; or why nothing is."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--requirement",
        str(lock),
        "--disable-pip",
        "--require-hashes",
    ]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    try:
        report: Any = json.loads(done.stdout)
    except ValueError:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {}, lines[-1][:300] if lines else f"pip-audit ended with {done.returncode}"
    return {
        one[
            "id"
        ]: f"{package['name']} {package['version']}, mended in {', '.join(one['fix_versions']) or 'none'}"
        for package in report["dependencies"]
        for one in package.get("vulns", ())
    }, ""


def verdict(known: dict[str, str], reasons: dict[str, str]) -> list[str]:
    """What to do about it; nothing where all is well."""
    wrong = [f"{name}: {about}" for name, about in known.items() if name not in reasons]
    wrong += [f"{name}: explained, but not there any more" for name in reasons if name not in known]
    return wrong + [f"{name}: explained by nothing" for name, reason in reasons.items() if not reason.strip()]


def blindness() -> str:
    """Why whoever answers here would not know of a vulnerability; nothing where it would."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder, "lock")
        lock.write_text(f"{KNOWN} --hash=sha256:{'0' * 64}\n")
        found, why = audit(lock)
    return why or ("" if found else f"the index here tells no vulnerabilities, not even of {KNOWN}")


def main() -> int:
    known: dict[str, str] = {}
    if why := blindness():
        print(f"audit: NOT DONE, nothing is known of the locks: {why}", file=sys.stderr)
        return 0
    for name in LOCKS:
        found, why = audit(ROOT / name)
        if why:
            print(f"audit: NOT DONE, nothing is known of {name}: {why}", file=sys.stderr)
            return 0
        known |= found
    wrong = verdict(known, explained(ROOT / "pyproject.toml"))
    print(*wrong, f"audit: {len(known)} known, {len(wrong)} to see to", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
