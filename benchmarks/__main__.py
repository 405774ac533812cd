"""Run the benchmarks, and write docs/benchmarks.md: `make bench`.

python -m benchmarks                        # every row but those of the 8B model
python -m benchmarks --only decode-4bit     # some rows; the others stay as they are
python -m benchmarks --quick                # few rounds, to see that all works
python -m benchmarks --big build/8b         # the 8B rows too; benchmarks.big makes it
python -m benchmarks --render               # the page and the plots, from the figures
"""

import argparse
import datetime
import os
from pathlib import Path
from typing import Any

from benchmarks import conduct, results
from benchmarks.rows import ROWS, Row

QUICK_ROUNDS = 3


def main() -> None:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", default=[])
    parser.add_argument("--quick", action="store_true", help="three rounds a row")
    parser.add_argument("--big", type=Path, metavar="FOLDER", help="the 8B rows, too")
    parser.add_argument("--rounds", type=int, help="rounds a row, if not its own")
    parser.add_argument("--patience", type=float, default=300, help="seconds a row")
    parser.add_argument("--threads", type=int, default=_cores())
    waits = ["PASSIVE", "ACTIVE", "default"]
    parser.add_argument(
        "--wait",
        choices=waits,
        default="PASSIVE",
        help="how PyTorch's idle threads wait: asleep, spinning, or as OpenMP likes",
    )
    parser.add_argument(
        "--llama-wait",
        choices=waits,
        default="default",
        help="the same for llama.cpp; on a busy machine spinning makes it very slow",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=results.FILE, help="raw figures")
    args = parser.parse_args()
    if not args.render:
        run(args)
    if args.out == results.FILE or args.render:
        from benchmarks import render

        render.write(results.read(args.out))


def chosen(only: list[str], big: bool) -> list[Row]:
    """The rows that were asked for; those of the 8B model only where its files are."""
    rows = [r for r in ROWS if (r.name in only if only else big or not r.big)]
    if not big and any(row.big for row in rows):
        raise SystemExit("the rows of the 8B model need --big FOLDER")
    return rows


def run(args: argparse.Namespace) -> None:
    from benchmarks import files

    inputs = files.smollm2(args.threads, args.quick)
    if args.big:
        inputs = files.with_big(inputs, args.big)
    for row in chosen(args.only, bool(args.big)):
        print(f"== {row.name}: {row.title}", flush=True)
        rounds = args.rounds or (QUICK_ROUNDS if args.quick else row.rounds)
        raw: dict[str, Any] = conduct.measure(
            row.entries(inputs),
            rounds=rounds,
            env=lambda spec: conduct.environment(
                spec, args.threads, args.wait, args.llama_wait
            ),
            logs=files.BUILD / "logs",
            patience=args.patience,
            seed=args.seed,
            alone=row.big,
            say=lambda text: print(text, flush=True),
        )
        about = {
            "when": datetime.datetime.now().isoformat(timespec="minutes"),
            "quick": args.quick,
            "threads": args.threads,
            "wait": args.wait,
            "llama_wait": args.llama_wait,
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        }
        results.add(args.out, row, inputs, raw, about)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    main()
