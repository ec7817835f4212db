"""The one error that a command tells its operator as a line of text."""


class CommandFailed(Exception):
    """What was asked cannot be done. The text says why, and what to do if anything can be."""
