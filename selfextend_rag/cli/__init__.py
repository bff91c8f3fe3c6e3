"""The command ``selfextend-rag``. Importing it loads nothing heavier than typer."""

from selfextend_rag.cli import ask, compare, evaluate, plan  # each adds its commands to the program
from selfextend_rag.cli.app import main

__all__ = ["ask", "compare", "evaluate", "main", "plan"]
