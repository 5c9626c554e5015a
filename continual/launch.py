"""Around a run: the process group, the signal to stop, and what a failure leaves: one line and an exit code."""

import os
import sys
import time
import traceback
from collections.abc import Callable

from continual import distributed, series
from continual.errors import Refused
from continual.options import Options

EXIT_FILE = "DYTOX_EXIT_FILE"  # where train.sh reads exit code and reason: torchrun ends with 1, after many lines of its own


def launch(main: Callable, options: Options) -> int:
    """Run `main`, or a series of it, as one of however many processes there are. Returns the exit code."""
    stop = distributed.StopSignal()
    try:
        device = distributed.start(options.run.device, timeout=options.run.process_timeout)
        series.run_all(main, options, device, stop)
    except Refused as refused:
        return _leave(refused.exit_code, f"error: {refused}", everywhere=refused.everywhere)
    except KeyboardInterrupt:
        return _leave(130, "interrupted", everywhere=True)
    except Exception:
        return _leave(1, traceback.format_exc(), everywhere=False)
    distributed.stop()
    return 0


def _leave(code: int, text: str, *, everywhere: bool) -> int:
    """Say why, leave the exit code for train.sh, and end this process whatever the others do."""
    rank, alone = distributed.rank(), distributed.nb_processes() == 1
    if everywhere and rank:
        time.sleep(3)  # the main process speaks for all, and its end ends this one too
    else:
        print(text if alone else f"rank {rank}: {text}", file=sys.stderr)
        if path := os.environ.get(EXIT_FILE):
            with open(path, "w") as file:
                file.write(f"{code}\n{text.strip().splitlines()[-1]}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    if not alone:
        os._exit(code)  # taking the group down could wait for processes that hang
    return code
