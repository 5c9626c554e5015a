"""What the commands beside main.py share: arguments, refusals in one line, exit codes."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
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


SCRIPT = "registering"  # what the script is called as a module
_script = ""  # that is being run for what it registers


def register() -> None:
    """Run the script that MAIN names, as for train.sh, for what it registers: its `continual.main()` returns at once.

    Raises OptionsError if there is none or it fails.
    """
    global _script
    path = os.path.expanduser(os.environ.get("MAIN", ""))
    if not path:
        return
    if not os.path.isfile(path):
        raise OptionsError(f"MAIN: there is no file {path}")
    _script = path
    try:
        spec = importlib.util.spec_from_file_location(SCRIPT, path, loader=SourceFileLoader(SCRIPT, path))
        sys.modules[SCRIPT] = importlib.util.module_from_spec(spec)  # where other processes find its classes, too
        spec.loader.exec_module(sys.modules[SCRIPT])
    except Refused:
        raise
    except (Exception, SystemExit) as error:
        raise OptionsError(f"MAIN: {path} failed {how_it_failed(error)}") from error
    finally:
        _script = ""


def registering() -> bool:
    """Whether a script is being run for what it registers alone."""
    return bool(_script)


def keep_out_of(run: Sequence[Path], path: str, option: str) -> Path:
    """The absolute path that an option names. run: the folders of one. Raises OptionsError if it lies there, or nowhere."""
    place = Path(os.path.realpath(absolute(path)))
    if any(place.is_relative_to(folder.resolve()) for folder in run):
        raise OptionsError(f"{option}: {path} lies in the folder of the run, of which nothing is touched")
    above = next(folder for folder in place.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise OptionsError(f"{option}: {path} cannot be written: {above} is no folder, or may not be written to")
    return place
