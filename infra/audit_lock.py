"""Known vulnerabilities of the packages that `requirements.lock` pins, by the data that pip-audit reads.

`python infra/audit_lock.py [LOCK]` exits with 1 if a pinned version has one. Where the package index gives no
such data (no network, a mirror without it), it says so and exits with 0.
"""

import json
import re
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([A-Za-z0-9._+!-]+)")
_ADDRESS = "https://pypi.org/pypi/{}/{}/json"
_TIMEOUT_S = 5.0
_NUM_THREADS = 8

Release = Mapping[str, Any]


def pins(lock: str) -> list[tuple[str, str]]:
    """Name and version of each line of a lock."""
    found = (_PIN.match(line) for line in lock.splitlines())
    return [(match[1], match[2].partition("+")[0]) for match in found if match]


def fetch(name: str, version: str) -> Release | None:
    """What the index says about a release; None if it does not answer."""
    try:
        with urllib.request.urlopen(_ADDRESS.format(name, version), timeout=_TIMEOUT_S) as answer:
            release: Release = json.load(answer)
    except (OSError, ValueError):
        return None
    return release


def audit(
    packages: Sequence[tuple[str, str]], fetch: Callable[[str, str], Release | None]
) -> tuple[str, ...]:
    """A line for each known vulnerability; OSError if the index says nothing about the first package."""
    if packages and "vulnerabilities" not in (fetch(*packages[0]) or {}):
        raise OSError("the package index gives no data about vulnerabilities")
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        releases = list(pool.map(lambda package: fetch(*package), packages))
    lines = []
    for (name, version), release in zip(packages, releases, strict=True):
        for known in (release or {}).get("vulnerabilities", ()):
            if not known.get("withdrawn"):
                names = ", ".join([known["id"], *known.get("aliases", ())])
                mended = ", ".join(known.get("fixed_in", ())) or "no version"
                lines.append(f"{name} {version}: {names}; mended in {mended}")
    return tuple(lines)


def main(arguments: Sequence[str]) -> int:
    """Print what was found and return the exit code."""
    packages = pins(Path(arguments[0] if arguments else LOCK).read_text())
    try:
        lines = audit(packages, fetch)
    except OSError as error:
        sys.stdout.write(f"audit: skipped, {error}\n")
        return 0
    found = "\n".join(lines) or f"audit: no known vulnerability in {len(packages)} packages"
    sys.stdout.write(f"{found}\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
