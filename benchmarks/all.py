"""Runs the benchmarks behind the first table of docs/results.md: demo and times of commands; `make bench`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMANDS = (("startup.py",), ("demo.py", "--again"))


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    codes = []
    for script, *options in COMMANDS:
        print(f"\n== {script} ==", flush=True)
        codes.append(subprocess.run([sys.executable, str(HERE / script), *options], check=False).returncode)
    print("\nmost other scripts need a teacher, images or a table; see their --help")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
