"""A server of OpenAI's API for whole documents; needs ``pip install "selfextend-rag[serve]"``."""

from selfextend_rag.serve.app import create_app
from selfextend_rag.serve.run import listen, run
from selfextend_rag.serve.settings import ServerSettings

__all__ = ["ServerSettings", "create_app", "listen", "run"]
