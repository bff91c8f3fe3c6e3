"""The bundled model: a small decoder of this project's own, loadable without any download.

``FOLDER`` holds it in transformers' form; README.md in the same folder is its card.
"""

from pathlib import Path

NAME = "bundled"
"""What users call it; ``./bundled`` is a folder of theirs."""
FOLDER = Path(__file__).parent
