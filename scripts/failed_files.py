"""Print the files of the tests that failed in the last run, if a second run of them alone can tell anything.

Exit code 1, and nothing printed: it cannot. A unit test or the simulation fails for a reason of its own, and when more
than two files fail it is not the machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")
MOST_FILES = 2


def files_to_repeat(failed: list[str]) -> list[str]:
    """The files of these tests, sorted; empty when they are not to be repeated."""
    files = sorted({test.partition("::")[0] for test in failed})
    repeatable = all(file.startswith("tests/integration/") for file in files)
    return files if repeatable and len(files) <= MOST_FILES else []


def main() -> int:
    try:
        failed = list(json.loads(LAST_FAILED.read_text()))
    except (OSError, ValueError):
        return 1
    files = files_to_repeat(failed)
    print(*files)
    return 0 if files else 1


if __name__ == "__main__":
    sys.exit(main())
