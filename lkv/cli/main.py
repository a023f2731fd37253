"""`lkv COMMAND`: parses the command line, checks outputs, runs the command, turns errors into one line."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lkv.cli import outputs, signals, terminal
from lkv.cli.parser import parser
from lkv.distributed.launch import LOST, launch, world
from lkv.errors import Lost, UserError, out_of_memory, plain
from lkv.files.atomic import remove_temporaries

log = logging.getLogger("lkv")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit code 0; 2 with one line for an error of the user's; 128 + n for signal n."""
    terminal.prepare()
    with signals.caught() as first:
        try:
            return terminal.finish(_main(argv))
        except BaseException as error:
            number = first.number or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
            if number is None:
                raise
            remove_temporaries()
            return _fail(signals.message(number), 128 + number)


def _main(argv: Sequence[str] | None) -> int:
    _quiet(None)
    try:
        args = parser().parse_args(argv)
        first = world() == 1 or os.environ.get("RANK") == "0"
        if first:  # the other processes would check files while the first one writes them
            outputs.check_log(args)
            _quiet(args.log)
            outputs.check(args)
        if (processes := getattr(args, "processes", 1)) > 1 and world() == 1:
            return launch(processes, [sys.executable, "-m", "lkv", *(sys.argv[1:] if argv is None else argv)])
        if processes > 1 and world() != processes:
            raise UserError(
                f"--processes {processes} within {world()} processes started elsewhere; leave it out"
            )
        _quiet(args.log)
        args.run(args)
    except UserError as error:
        return _fail(str(error))
    except Lost as error:
        log.error(error)
        if os.environ.get("RANK") != "0":  # the first process reports its own error
            terminal.say(f"lkv: error: {plain(error)}")
        return LOST
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.filename is None:
            return terminal.GONE
        if error.errno is None:
            raise
        place = error.filename2 or error.filename or "a file"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _fail(f"cannot write {place}: {error.strerror}; free some space")
        return _fail(f"{place}: {error.strerror}; correct the path, or its permissions")
    except Exception as error:
        if not (message := out_of_memory(error)):
            raise
        return _fail(message)
    return 0


def _fail(message: str, code: int = 2) -> int:
    log.error(plain(message))
    terminal.say(f"lkv: error: {plain(message)}")
    return code


def _quiet(path: Path | None) -> None:
    """Logs one line per event into `path`, and keeps notices of other libraries off the terminal."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # a bar in a file is a line each time
    logging.raiseExceptions = False  # a log on a full disk must not print tracebacks over the error
    log.setLevel(logging.INFO)
    log.propagate = False
    handler: logging.Handler = logging.NullHandler()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    log.handlers[:] = [handler]


if __name__ == "__main__":
    sys.exit(main())
