"""The driver of `test_run_entrypoints.py`: runs commands one after another on a cluster, and scrapes its
metrics meanwhile.

`python -m tests.infra.run_entrypoints FOLDER --set cluster.address=HOST:PORT`, as the batch script calls
its entrypoint. FOLDER/commands.json is a list of [place, words]; FOLDER/results.json gets place -> exit
code, seconds and last lines, and FOLDER/metrics.json the names of the product's metrics that the cluster
served.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

SCRAPE_EVERY_S = 1.0
LAST = 2000


class Scraper(threading.Thread):
    """Collects the names of metrics at the addresses that Ray writes for Prometheus."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.names: set[str] = set()
        self.ending = threading.Event()

    def run(self) -> None:
        discovery = Path(os.environ["RAY_TMPDIR"], "prom_metrics_service_discovery.json")
        while not self.ending.wait(SCRAPE_EVERY_S):
            if discovery.exists():
                for group in json.loads(discovery.read_text() or "[]"):
                    for target in group["targets"]:
                        self._scrape(target)

    def _scrape(self, target: str) -> None:
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=2) as answer:
                text = answer.read().decode()
        except OSError:
            return
        self.names |= set(re.findall(r"^(ray_diffbfr_\w+)\{", text, re.MULTILINE))


def main(folder: Path, address: str) -> int:
    scraper = Scraper()
    scraper.start()
    results = {}
    for where, words in json.loads((folder / "commands.json").read_text()):
        words = [word.replace("cluster.address=auto", address) for word in words]
        started = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=1800)
        results[where] = {
            "code": done.returncode,
            "seconds": round(time.monotonic() - started, 1),
            "output": (done.stdout[-LAST:], done.stderr[-LAST:]),
        }
        (folder / "results.json").write_text(json.dumps(results, indent=1))
    scraper.ending.set()
    (folder / "metrics.json").write_text(json.dumps(sorted(scraper.names)))
    return int(any(result["code"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[3]))
