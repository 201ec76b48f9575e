"""How often a test repeats what it proves: by default often enough to see a fault that is there."""

import os


def count(usual: int, full: int) -> int:
    """`usual`, or `full` where `DIFFBFR_TEST_FULL=1` asks for the full counts."""
    return full if os.environ.get("DIFFBFR_TEST_FULL") == "1" else usual
