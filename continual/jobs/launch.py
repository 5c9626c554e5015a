"""Around a run: the process group, the signal to stop, and what a failure leaves: one line and an exit code."""

import errno
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import torch

from continual.errors import CheckpointError, LostProcess, Refused, plain
from continual.jobs import distributed, watch
from continual.options import PATCH_ENCODERS, Options

JOB = "DYTOX_JOB"  # a folder where train.sh and its processes leave each other word
UNORDERED = "does not have a deterministic implementation"  # as torch says it
SMALL = 2**16  # numbers in the map of one layer: images x patches x dimensions
THREADS = "DYTOX_THREADS"  # set where train.sh chose OMP_NUM_THREADS, and not a user
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Job:
    """What every process does around its work: on entering it hears signals; what fails inside is one line and an exit code.

    with Job() as job:
        device = job.join(options)
        ...
    sys.exit(job.exit_code)
    """

    def __init__(self) -> None:
        self.exit_code, self.ended_before = 0, False

    def __enter__(self) -> "Job":
        self.stop = watch.StopSignal()
        return self

    def join(self, options: Options) -> torch.device:
        """Find the other processes, if there are any; returns this one's device. Raises OptionsError and LostProcess.

        `ended_before` says whether an earlier start of the job ended on purpose, and would only end so again.
        """
        if os.environ.get(JOB):
            greet_train_sh(self.stop)
        device = distributed.start(
            options.run.device, timeout=options.run.process_timeout, deterministic=options.optim.deterministic
        )
        spare_threads(device, options)
        if (code := distributed.kept("exit code")) is not None:
            self.ended_before, self.exit_code = True, int(code)
        return device

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        try:
            if error is not None:
                raise error
            distributed.stop()
            self.exit_code = _for_torchrun(self.exit_code)
        except Refused as refused:
            self.exit_code = _leave(refused.exit_code, f"error: {refused}")
        except LostProcess as lost:
            self.exit_code = _leave(1, None, lost=str(lost))
        except KeyboardInterrupt:
            self.exit_code = _leave(130, "interrupted")
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the last flush would fail again
            self.exit_code = _leave(1, "error: nobody reads the output any more")
        except OSError as failed:
            full = f"error: could not write {failed.filename or 'a file'}: {failed.strerror}"
            known = failed.errno in DISK_FULL
            self.exit_code = _leave(CheckpointError.exit_code, full) if known else _leave(1, traceback.format_exc())
        except Exception as failed:
            if UNORDERED in str(failed):
                what = str(failed).partition(UNORDERED)[0].strip()
                told = f"error: deterministic: {what} has no kernel that adds up in a fixed order; set deterministic: false"
                self.exit_code = _leave(2, told)
                return True
            self.exit_code = _leave(1, traceback.format_exc())
        return True


def spare_threads(device: torch.device, options: Options) -> None:
    """Compute a small model on the CPU with one thread, unless a user's OMP_NUM_THREADS says how many.

    Up to some 65,000 numbers in a map, two threads are no faster than one: they wait for each other, and burn what they wait.
    """
    model, optim = options.model, options.optim
    told = "OMP_NUM_THREADS" in os.environ and THREADS not in os.environ
    if device.type != "cpu" or told or model.model not in PATCH_ENCODERS:
        return
    replicas = (optim.replicas or distributed.nb_processes()) // distributed.nb_processes()
    if optim.batch_size * max(1, replicas) * (model.input_size // model.patch_size) ** 2 * model.embed_dim <= SMALL:
        torch.set_num_threads(1)


def greet_train_sh(stop: watch.StopSignal) -> None:
    """Tell it that SIGTERM is heard from here on, and hear whether it was asked to stop before."""
    job = Path(os.environ[JOB])
    (job / f"pid-{os.environ.get('LOCAL_RANK', '0')}").write_text(f"{os.getpid()}\n")
    stop.requested |= (job / "stop").exists()


def _leave(code: int, text: str | None, *, lost: str = "") -> int:
    """Say why, unless another process does; leave the exit code for train.sh; end this process whatever the others do."""
    sys.last_value = sys.exc_info()[1]  # kept to the end: a loader that began by half would complain of being deleted
    alone = distributed.nb_processes() == 1
    text = watch.words_to_say(None if text is None else plain(text), plain(lost))
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
    watch.forget_workers()
    watch.end_workers()
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
