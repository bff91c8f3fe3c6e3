"""``python -m selfextend_rag`` is ``selfextend-rag``."""

import sys

from selfextend_rag.cli import main

sys.exit(main())
