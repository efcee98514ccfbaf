"""The error that all complaints about what a user gave are."""


class InputError(ValueError):
    """An argument, a file or a checkpoint cannot be used as it is.

    The message says what was found, what was expected and where. Scripts print it without a
    traceback.
    """


class OutputError(InputError):
    """A picture that cannot be written, or a file without readable settings."""


class CheckpointError(InputError):
    """A checkpoint file is missing, damaged, or not what it should be."""
