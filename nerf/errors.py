"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the file or flag, its value and the remedy; main.py prints it and exits with 1."""
