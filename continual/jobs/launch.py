"""Around a run: the process group, the signal to stop, and what a failure leaves: one line and an exit code."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from continual.errors import CheckpointError, LostProcess, Refused, plain
from continual.jobs import distributed
from continual.options import Options
from continual.runs import series

JOB = "DYTOX_JOB"  # a folder where train.sh and its processes leave each other word
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def launch(main: Callable, options: Options) -> int:
    """Run `main`, or a series of it, as one of however many processes there are. Returns the exit code."""
    stop = distributed.StopSignal()
    try:
        if os.environ.get(JOB):
            greet_train_sh(stop)
        device = distributed.start(options.run.device, timeout=options.run.process_timeout)
        ended_before = distributed.kept("exit code")
        if ended_before is None:
            series.run_all(main, options, device, stop)
        distributed.stop()
    except Refused as refused:
        return _leave(refused.exit_code, f"error: {refused}")
    except LostProcess as lost:
        return _leave(1, None, lost=str(lost))
    except KeyboardInterrupt:
        return _leave(130, "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the last flush would fail again
        return _leave(1, "error: nobody reads the output any more")
    except OSError as error:
        if error.errno in DISK_FULL:
            return _leave(CheckpointError.exit_code, f"error: could not write {error.filename or 'a file'}: {error.strerror}")
        return _leave(1, traceback.format_exc())
    except Exception:
        return _leave(1, traceback.format_exc())
    return _for_torchrun(int(ended_before or 0))  # what ended on purpose would only end so again


def greet_train_sh(stop: distributed.StopSignal) -> None:
    """Tell it that SIGTERM is heard from here on, and hear whether it was asked to stop before."""
    job = Path(os.environ[JOB])
    (job / f"pid-{os.environ.get('LOCAL_RANK', '0')}").write_text(f"{os.getpid()}\n")
    stop.requested |= (job / "stop").exists()


def _leave(code: int, text: str | None, *, lost: str = "") -> int:
    """Say why, unless another process does; leave the exit code for train.sh; end this process whatever the others do."""
    sys.last_value = sys.exc_info()[1]  # kept to the end: a loader that began by half would complain of being deleted
    alone = distributed.nb_processes() == 1
    text = distributed.words_to_say(None if text is None else plain(text), plain(lost))
    if code != 1:
        distributed.keep("exit code", str(code))
    if text is not None:
        text = text if alone else f"rank {distributed.rank()}: {text}"
        print(text, file=sys.stderr)
        _tell_train_sh("exit", code, text.strip().splitlines()[-1])
    else:  # counts where nobody says more: on another machine than the one that speaks
        _tell_train_sh("silent-exit", code, "error: another process of the job says why")
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the handler of a DataLoader would call its workers' end an error
    distributed.end_workers()
    if not alone:
        os._exit(_for_torchrun(code))  # taking the group down could wait for processes that hang
    return _for_torchrun(code)


def _tell_train_sh(file: str, code: int, reason: str) -> None:
    if os.environ.get(JOB):
        with suppress(OSError):  # train.sh was killed, or the disk is full
            Path(os.environ[JOB], file).write_text(f"{code}\n{reason}\n", encoding="utf-8")


def _for_torchrun(code: int) -> int:
    """0 for what ended on purpose, if train.sh knows better: torchrun would add a page of its own to the one line.

    Not on several machines, where the torchrun of one would then wait for the others.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    told = os.environ.get(JOB) and any(Path(os.environ[JOB], file).is_file() for file in ("exit", "silent-exit"))
    return 0 if code != 1 and alone and told else code
