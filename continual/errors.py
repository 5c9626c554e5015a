"""What stops a run on purpose: one clear line for the person, one exit code for the script."""

import re
import traceback
from collections.abc import Iterable


class Refused(Exception):
    """Something that cannot go on. The message is one line, written for the person at the keyboard.

    Line breaks and other control characters, as names of files may hold, are escaped.
    """

    exit_code = 1

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() or 0xD800 <= ord(c) <= 0xDFFF else ascii(c)[1:-1] for c in message))


class OptionsError(Refused):
    """A key, value or combination of options that is not accepted."""

    exit_code = 2


class DataError(Refused):
    """Missing, empty or corrupt data."""

    exit_code = 3

    def __init__(self, message: str):
        # A DataLoader's worker hands its error on wrapped in a whole traceback, whose last line is the message.
        wrapped = message.startswith("Caught ") and message.strip().count("\n") > 0
        last = message.strip().splitlines()[-1] if wrapped else message
        super().__init__(last.removeprefix(f"{__name__}.{type(self).__name__}: "))


class LoadingFailed(Refused):
    """The workers of data loading could not start or go on."""


class CheckpointError(Refused):
    """No valid checkpoint, or one of another experiment."""

    exit_code = 4


class NonFiniteLoss(Refused):
    """A loss or its gradient became NaN or infinite; raised on every process at the same step, before the update."""

    exit_code = 5


class Preempted(Refused):
    """The run was asked to stop (SIGTERM, Ctrl-C), and saved its state if it had one to save."""

    exit_code = 75


class LostProcess(Exception):
    """Another process of the job ended or does not answer."""


def plain(text: str) -> str:
    """Text that every stream, file and store takes: bytes of names that are not UTF-8 are written as \\xe9."""
    text = re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", text)
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(error: BaseException) -> str:
    """Another library's error, on one line, with its type."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def how_it_failed(error: BaseException, path: str = "") -> str:
    """Where and why something from outside failed: "at line 3 of mine.py: ValueError: ...".

    path: the file to name, where its frames are among others; default: where it was raised.
    """
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((each for each in reversed(frames) if each.filename == path), frames[-1])
    line, file = frame.lineno, frame.filename
    if isinstance(error, SyntaxError) and error.filename:
        line, file = error.lineno, error.filename
    return f"at line {line} of {file}: {one_line(error)}"


def some(values: Iterable[object], most: int = 10) -> str:
    """The first few values, and how many more there are."""
    words = [str(value) for value in values]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
