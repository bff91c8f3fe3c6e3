"""The command ``selfextend-rag``. Importing it loads nothing heavier than typer."""

from selfextend_rag.cli import (  # each adds its commands to the program
    ask,
    compare,
    corpus,
    evaluate,
    plan,
    serve,
)
from selfextend_rag.cli.app import main

__all__ = ["ask", "compare", "corpus", "evaluate", "main", "plan", "serve"]
