"""The one error type that means "the user's input is wrong"."""


class InputError(ValueError):
    """Bad input, told in one line: what was found, what was expected, what to do.

    The command line prints the message and exits with code 2; a Python caller may catch it as a ValueError.
    Anything else that is raised is a bug and keeps its traceback.
    """
