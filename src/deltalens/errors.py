"""The two ways in which deltalens says no, as `error:` and `fix:` lines, and how foreign text is shown in them."""


class DeltalensError(Exception):
    """A problem that the user can mend, never shown with a traceback.

    Args:
        error: What is wrong, one sentence without a full stop, naming the thing.
        fix: What to do about it, where there is something to do.
    """

    exit_code = 2

    def __init__(self, error: str, fix: str | None = None) -> None:
        super().__init__(error if fix is None else f"{error} (fix: {fix})")
        self.error = error
        self.fix = fix


class BadInput(DeltalensError):
    """Bad usage or an input that cannot be read: exit code 2."""


class Refused(DeltalensError):
    """The input is readable, but the work would be wrong, unsafe or would overwrite: exit code 3."""

    exit_code = 3


def printable(text: object) -> str:
    """`text` with control, bidirectional and other invisible characters as escapes, safe for a terminal or a page."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
