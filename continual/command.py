"""What the commands beside main.py share: arguments, refusals in one line, exit codes."""

import argparse
import gc
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from continual.errors import OptionsError, Refused, how_it_failed, plain
from continual.files import absolute


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises OptionsError instead of ending the process; the docstring of a command is its help."""

    def __init__(self, name: str, told: str):
        how = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(prog=f"python -m continual.{name}", description=told, **how)

    def error(self, message: str) -> NoReturn:
        """Raise OptionsError in the place of usage and exit."""
        raise OptionsError(f"{message} (--help says more)")


def answered(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    """The exit code of a command; what it refuses is one line on standard error. argv: None for those of the process."""
    try:
        if not {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
            register()
        return command(argv)
    except Refused as refused:
        print(f"error: {plain(str(refused))}", file=sys.stderr)
        return refused.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import for all that is left of a process: what is there then is never looked through for garbage, nor at the end.

    With torch and timm that is a third of a start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


SCRIPT = "registering"  # what a script is called as a module, where forked workers find its classes, too
_registering = False


def register() -> None:
    """Run the script that MAIN names, as for train.sh, for what it registers; it ends at its `continual.main()`.

    Raises OptionsError if there is none or it fails.
    """
    global _registering
    wanted = os.environ.get("MAIN", "")
    path = os.path.abspath(os.path.expanduser(wanted))
    if not wanted or path == script() or _registering:
        return
    if not os.path.isfile(path):
        raise OptionsError(f"MAIN: there is no file {path}")
    module, argv, paths = types.ModuleType(SCRIPT), sys.argv, sys.path[:]
    sys.modules[SCRIPT], module.__file__, sys.argv = module, path, [path]
    sys.path.insert(0, os.path.dirname(path))
    _registering = True
    try:
        exec(compile(Path(path).read_bytes(), path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            return
        del sys.modules[SCRIPT]
        if isinstance(error, Refused):
            raise
        raise OptionsError(f"MAIN: {path} failed {how_it_failed(error, path)}") from error
    finally:
        sys.argv, sys.path[:], _registering = argv, paths, False


def registering() -> bool:
    """Whether a script is being run for what it registers."""
    return _registering


def script() -> str:
    """The path of the script that was run for what it registers; empty without one."""
    return getattr(sys.modules.get(SCRIPT), "__file__", "")


def keep_out_of(run: Sequence[Path], path: str, option: str) -> Path:
    """The absolute path that an option names. run: the folders of one. Raises OptionsError if it lies there, or nowhere."""
    place = Path(os.path.realpath(absolute(path)))
    if any(place.is_relative_to(folder.resolve()) for folder in run):
        raise OptionsError(f"{option}: {path} lies in the folder of the run, of which nothing is touched")
    above = next(folder for folder in place.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise OptionsError(f"{option}: {path} cannot be written: {above} is no folder, or may not be written to")
    return place
