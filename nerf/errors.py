"""The one exception that is meant for the person at the keyboard, and how scripts tell it."""

import functools
import sys
from pathlib import Path


class UserError(Exception):
    """Bad input. The message is one sentence that names the file or flag, its value and the remedy; main.py prints it and exits with 1."""


def tells_user_errors(main):
    """Decorator of a script's main(...): a UserError becomes a line on standard error, after the script's name.

    What it makes returns the exit status: 1 then, else what main returns, None being 0.
    """
    script = Path(main.__code__.co_filename).name

    @functools.wraps(main)
    def told(*arguments):
        try:
            return main(*arguments) or 0
        except UserError as error:
            print(f"{script}: {error}", file=sys.stderr)
            return 1

    return told
