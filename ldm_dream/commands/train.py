"""Train a diffusion model or an autoencoder from a config; the same command again resumes the run.

examples:
  ldm-dream train configs/quickstart.yaml --set 'data.train=[photos]'
  ldm-dream train CONFIG.yaml --set train.steps=1000 loss.strength=0 --run-dir runs/plain
  ldm-dream train CONFIG.yaml --dry-run

exit status:
  0 done, 2 a mistake in the command or in what it reads (one line says which),
  130 or 143 stopped by Ctrl-C or SIGTERM, with a checkpoint
"""

import argparse
from pathlib import Path

from ldm_dream.cli import command_line, positive, user_errors
from ldm_dream.config.files import default_run_dir, dump_config, load_config
from ldm_dream.training.check import check_run, not_there


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("train", __doc__)
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG.yaml", help="the run; see configs/")
    add(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="a.b=value",
        help="change knobs, such as train.steps=1000",
    )
    add(
        "--run-dir",
        type=Path,
        help="checkpoints and metrics.jsonl go here (default: configs/A/B.yaml goes to runs/A/B)",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print run folder, missing places and resolved config, then stop",
    )
    add(
        "--profile",
        type=positive,
        default=0,
        metavar="N",
        help="write a trace of N steps, after the first three, to RUN_DIR/trace.json",
    )
    return parser


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    run_dir = args.run_dir or default_run_dir(args.config)
    with user_errors():
        run = load_config(args.config, args.set)
        run = check_run(run, run_dir, starts=not args.dry_run)
        if args.dry_run:
            print(f"# run folder: {run_dir}")
            for entry in not_there(run):
                print(f"# not there yet: {entry}")
            print(dump_config(run), end="")
            return
        from ldm_dream.training.train import (
            train,  # here, so that --help and --dry-run answer without torch
        )

        raise SystemExit(train(run, run_dir, args.profile))
