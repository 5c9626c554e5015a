"""What stops a run on purpose: one clear line for the person, one exit code for the script."""


class Refused(Exception):
    """Something that cannot go on. The message is one line, written for the person at the keyboard."""

    exit_code = 1
    everywhere = False  # whether every process of a job meets it at once, so that one of them may speak for all


class OptionsError(Refused):
    """A key, value or combination of options that is not accepted."""

    exit_code = 2
    everywhere = True


class DataError(Refused):
    """Missing, empty or corrupt data."""

    exit_code = 3


class CheckpointError(Refused):
    """No valid checkpoint, or one of another experiment."""

    exit_code = 4
    everywhere = True


class NonFiniteLoss(Refused):
    """A loss became NaN or infinite; raised on every process at the same step, before the update."""

    exit_code = 5
    everywhere = True


class Preempted(Refused):
    """The run was asked to stop (SIGTERM), and saved its state."""

    exit_code = 75
    everywhere = True
