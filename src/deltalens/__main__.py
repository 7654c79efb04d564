"""`python -m deltalens` and the console script: Ctrl-C ends quietly even while modules load."""

import signal


def entry() -> None:
    """Load the command line and run it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a traceback out of an import would tell nobody anything
    from deltalens.cli.main import entry as loaded

    loaded()


if __name__ == "__main__":
    entry()
