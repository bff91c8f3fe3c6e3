"""``python -m selfextend_rag.evals``: the command ``selfextend-rag eval`` by another name."""

import sys

from selfextend_rag.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
