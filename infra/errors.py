"""The one error that a command shows to its operator as a line of text."""


class CommandFailed(Exception):
    """The command cannot be carried out. The text says why, and what to do about it if anything."""
