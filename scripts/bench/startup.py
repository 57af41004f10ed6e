"""The time of `python -m train --help` as a whole process, against importing Hydra and composing the same config.

python scripts/bench/startup.py [--rounds 15]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 1.3
FLOOR = """
from hydra import compose, initialize_config_module
with initialize_config_module("configs", version_base="1.3"):
    compose("train", return_hydra_config=True)
"""
COMMANDS = {
    "floor": ["-c", FLOOR],
    "--help": ["-m", "train", "--help"],
    "bare": ["-m", "train"],
    "unknown key": ["-m", "train", "sede=1"],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False, env=dict(os.environ))
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    for arguments in COMMANDS.values():  # compile the bytecode and fill the page cache
        seconds(arguments)
    measured = [{name: seconds(arguments) for name, arguments in COMMANDS.items()} for _ in range(rounds)]
    for name in COMMANDS:
        median = statistics.median(times[name] for times in measured)
        ratio = statistics.median(times[name] / times["floor"] for times in measured)
        print(f"{name:12} {median:6.3f} s   {ratio:5.2f} x floor")
    ratio = statistics.median(times["--help"] / times["floor"] for times in measured)
    print(f"--help against the floor: {ratio:.2f} (limit {LIMIT}), median of {rounds} rounds")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
