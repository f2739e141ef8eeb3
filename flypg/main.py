"""The `flypg` command: parse, call one function, print its reply, exit with its code."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence

from cluster.errors import (
    FlypgError,
    OutcomeUnknown,
    SettingsError,
    StoreConflict,
    StoredFormatError,
    StoreUnavailable,
)
from flypg.cli import build_parser
from flypg.home import settle_home
from flypg.reply import BadInput, Exit, Refused, Reply


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    settle_home()
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return Exit.BAD_INPUT
    if arguments == ["--version"]:
        arguments = ["version"]
    args = parser.parse_args(arguments)
    try:
        reply = answer(args)
        show(reply, as_json=getattr(args, "json", False))
    except KeyboardInterrupt as stopped:
        if stopped.args:
            print(f"flypg: {stopped}", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # `flypg status | head`: nobody is left to read, and nothing is wrong
        sys.stderr.close()
        return Exit.OK
    return int(reply.exit)


def answer(args: argparse.Namespace) -> Reply:
    """Call the chosen command. What the world did wrong becomes a reply; a bug is not caught."""
    module, _, function = args.run.partition(":")
    run: Callable[[argparse.Namespace], Reply] = getattr(importlib.import_module(module), function)
    try:
        return run(args)
    except (BadInput, SettingsError) as error:
        return Reply(Exit.BAD_INPUT, str(error))
    except Refused as error:
        return Reply(Exit.REFUSED, str(error))
    except StoreUnavailable as error:
        return Reply(Exit.UNREACHABLE, f"etcd cannot be reached: {error}; nothing was changed")
    except OutcomeUnknown as error:
        return Reply(Exit.FAILED, f"{error}; it may or may not have been done: look with flypg status before repeating")
    except StoreConflict as error:
        return Reply(Exit.FAILED, f"somebody else changed the cluster at the same moment, nothing was done: {error}")
    except StoredFormatError as error:
        return Reply(Exit.FAILED, f"{error}; use the flypg that the cluster's nodes run")
    except FlypgError as error:
        return Reply(Exit.FAILED, str(error))


def show(reply: Reply, *, as_json: bool) -> None:
    """Answers go to standard output, complaints to standard error; --json always to standard output."""
    if as_json:
        body: dict[str, object] = {"exit": int(reply.exit), "text": reply.text}
        if isinstance(reply.data, dict):
            body |= reply.data
        elif reply.data is not None:
            body["data"] = reply.data
        if isinstance(reply.data, dict) and reply.ok and "text" not in reply.data:
            del body["text"]  # the table for people
        print(json.dumps(body, indent=2, ensure_ascii=False), flush=True)
    elif reply.ok or (reply.exit is Exit.FAILED and reply.data is not None):  # a finding is an answer, too
        if reply.text:
            print(reply.text, flush=True)
    elif reply.text:
        print(f"flypg: {reply.text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
