"""``selfextend-rag serve`` and ``app``: the model as a server, and as a page in the browser."""

import os
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from typer import Argument, Option

from selfextend_rag.cli.app import app
from selfextend_rag.cli.options import BadOption, ReadingOptions, user_mistakes
from selfextend_rag.errors import in_short

if TYPE_CHECKING:
    from selfextend_rag.documents import Document
    from selfextend_rag.serve import ServerSettings
    from selfextend_rag.serve.files import FileStore

KEY_VARIABLE = "SELFEXTEND_RAG_API_KEY"

_server = partial(Option, rich_help_panel="Server")


@app.command()
@dataclass(kw_only=True)
class Serve(ReadingOptions):
    """Serve a model under OpenAI's API; files that are attached to questions are read whole."""

    files: list[str] = Argument([], metavar="FILE", help="files to keep from the start")
    host: str = _server("127.0.0.1", help="name or address to listen on")
    port: int = _server(8000, help="0 takes one that is free")
    name: str | None = _server(None, help="what clients call the model; --model by default")
    api_key: str | None = _server(
        None, help=f"what clients must send; better set as {KEY_VARIABLE}, where nobody lists it"
    )
    allowed_host: list[str] = _server(
        [], help="a further name under which clients may address the server, or * for any"
    )
    allowed_origin: list[str] = _server(
        [], help="a web page of another host that may use the server, such as https://a.example"
    )
    max_waiting: int = _server(64, help="requests that may wait; further ones are sent away")
    readings_dir: str | None = _server(None, help="folder to keep readings in, for the next start")

    web = False  # whether the page is served too

    def run(self) -> int:
        try:
            from selfextend_rag.serve import listen, run
        except ImportError as error:
            raise BadOption(
                f"the server needs more libraries ({in_short(error)}): "
                'pip install "selfextend-rag[serve]"'
            ) from error
        settings = self.settings()
        try:
            bound = listen(self.host, self.port)  # before the model is loaded, which may take long
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadOption(f"can't listen on {self.host}:{self.port}: {reason}") from error
        run(partial(self.made, settings), bound, settings, self.started)
        return 0

    def made(self, settings: "ServerSettings") -> Any:  # what `create_app` returns
        """Return the server, its model loaded and its files kept.

        Raises:
            BadOption: what was given can't be had.
        """
        from selfextend_rag.serve import create_app

        with user_mistakes():
            documents = self.documents().documents if self.files else []
            chosen, limit = self.planner_options(), self.memory_limits()
            llm = self.load(kv_bits=self.kv_bits, memory_limit=limit, **chosen)
            served = create_app(llm, settings, web=self.web)
        self.keep(served.state.served.files, documents)
        return served

    def settings(self) -> "ServerSettings":
        """Return what the server allows.

        Raises:
            BadOption: others could reach it without a key.
        """
        from selfextend_rag.serve.guard import is_loopback
        from selfextend_rag.serve.settings import LOOPBACK, ServerSettings

        key = self.api_key or os.environ.get(KEY_VARIABLE) or None
        hosts = (*LOOPBACK, *self.allowed_host)
        if not is_loopback(self.host):
            if key is None:
                raise BadOption(
                    f"--host {self.host} can be reached from other machines; set {KEY_VARIABLE} or "
                    "give --api-key, or listen on 127.0.0.1"
                )
            hosts = (*hosts, self.host) if self.allowed_host else ("*",)
        with user_mistakes():
            return ServerSettings(
                model_name=self.name or self.model,
                api_key=key,
                allowed_hosts=hosts,
                allowed_origins=tuple(self.allowed_origin),
                max_waiting=self.max_waiting,
                max_new_tokens=self.max_new_tokens,
                readings_dir=self.readings_dir,
            )

    def keep(self, files: "FileStore", documents: "Sequence[Document]") -> None:
        """Have the server keep documents as if they had been sent to it.

        Raises:
            BadOption: they are too many.
        """
        from selfextend_rag.serve.files import NoSpace

        for document in documents:
            path = Path(document.source or document.title)
            size = path.stat().st_size if path.is_file() else len(document.text.encode())
            try:
                file = files.keep(document, path.name, size)
            except NoSpace as error:
                raise BadOption(str(error)) from error
            self.say(f"{path}: {file.id}")

    def started(self, address: str) -> None:
        """Say where the server is."""
        self.write_result({"address": f"{address}/v1"}, f"{address}/v1")
        self.say(f'model "{self.name or self.model}"; Ctrl-C ends it')


@app.command("app")
@dataclass(kw_only=True)
class App(Serve):
    """Open the web app: documents in, answers with the passages they rest on."""

    no_browser: bool = _server(False, "--no-browser", help="open no window, write the address only")

    web = True

    def started(self, address: str) -> None:
        """Say where the page is, and open it."""
        self.write_result({"address": f"{address}/app/"}, f"{address}/app/")
        self.say("Ctrl-C ends it")
        if not self.no_browser:  # in a thread: one in the terminal keeps its caller waiting
            page, name = f"{address}/app/", "selfextend-rag-browser"
            Thread(None, webbrowser.open, name, (page,), daemon=True).start()
