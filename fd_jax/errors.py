"""The error that all complaints about what a user gave are."""


class InputError(ValueError):
    """An argument, a file or a checkpoint cannot be used as it is.

    The message says what was found, what was expected and where. Scripts print it without a
    traceback.
    """
