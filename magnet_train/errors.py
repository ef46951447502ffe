"""The one exception that the command line turns into a sentence instead of a traceback."""


class UserError(Exception):
    """Something that the person at the keyboard can mend.

    The message is one sentence that names the file, key or value and says what to do. Anything else that
    goes wrong is a bug of ours and keeps its traceback.
    """
