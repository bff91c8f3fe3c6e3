"""The command ``selfextend-rag``. Importing it loads nothing heavier than argparse."""

from selfextend_rag.cli.main import main

__all__ = ["main"]
