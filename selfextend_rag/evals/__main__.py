"""Run the evaluation from the command line."""

import sys

from selfextend_rag.evals.cli import main

sys.exit(main())
