"""Fuzzes one decoder with coverage feedback, from the seed corpus: `python tests/fuzz/run.py TARGET --seconds 120`.

Inputs that reach new code gather in OUT/TARGET, one that breaks a promise is written to OUT/TARGET-crash-*, and the
exit status is not 0.
"""

import argparse
import logging
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["reward_api", "python_multipart", "starlette.formparsers"]):
    from targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    args = parser.parse_args()
    found = args.out / args.target
    found.mkdir(parents=True, exist_ok=True)
    logging.disable()  # the form parser writes a line for every malformed input
    bounds = [f"-max_total_time={args.seconds}", "-max_len=65536", "-timeout=20", "-rss_limit_mb=2048"]
    artifacts = f"-artifact_prefix={args.out}/{args.target}-"
    folders = [str(found), str(CORPUS / args.target)]
    atheris.Setup([sys.argv[0], *bounds, artifacts, "-print_final_stats=1", *folders], TARGETS[args.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
