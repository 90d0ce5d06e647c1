#!/usr/bin/env python3
"""Fails when clang-format would change a source.

  source_format.py ROOT

Only version 14 judges (Debian 12's): others lay out some lines differently. Without it, exit code 77: not run.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDERS = ["base", "ops", "comm", "data", "trainer", "launcher", "tests"]
VERSION = "14"
NOT_RUN = 77


def judge():
    """The program of the right version, or None, and what was found."""
    found = []
    for name in (f"clang-format-{VERSION}", "clang-format"):
        if program := shutil.which(name):
            text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
            version = re.search(r"version (\d+)", text)
            found.append(version.group(1) if version else text.strip())
            if found[-1] == VERSION:
                return program, found
    return None, found


def main():
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    program, found = judge()
    if program is None:
        print(f"not run: it takes clang-format {VERSION}, here is {' and '.join(found) or 'none'}")
        return NOT_RUN
    root = Path(sys.argv[1])
    files = sorted(str(path.relative_to(root)) for folder in FOLDERS for suffix in ("h", "cpp")
                   for path in (root / folder).rglob(f"*.{suffix}"))
    result = subprocess.run([program, "--dry-run", "--Werror", *files], cwd=root, capture_output=True, text=True)
    print(result.stderr, end="")
    wrong = sorted(set(re.findall(r"^(\S+?):\d+:\d+: error:", result.stderr, re.MULTILINE)))
    if wrong:
        print(f"to be formatted: clang-format -i {' '.join(wrong)}")
    print(f"{len(files)} files, {len(wrong)} to be formatted")
    return 1 if result.returncode != 0 or wrong or not files else 0


sys.exit(main())
