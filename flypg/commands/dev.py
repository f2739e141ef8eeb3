"""flypg dev: tools for work on flypg itself, out of a checkout of its source."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from flypg.reply import BadInput, Exit, Reply

CHECKOUT = Path(__file__).resolve().parents[2]


def simulate(args: argparse.Namespace) -> Reply:
    """flypg dev simulate SEED: replay one simulated run, step by step."""
    if not (CHECKOUT / "tests" / "simulation").is_dir():
        raise BadInput(
            "the simulation is part of flypg's source: run this from a checkout, .venv/bin/flypg dev simulate"
        )
    sys.path.insert(0, str(CHECKOUT))
    replay = importlib.import_module("tests.simulation.replay")
    failed = replay.replay(args.seed, trace=args.trace)
    return Reply(Exit.FAILED if failed else Exit.OK)
