"""A server that answers in the form in which vLLM does, and misbehaves as it is told to.

It reads for real: a prompt becomes tokens by its tokenizer, and the answer is the number after
``key is`` in the text of these tokens, so an answer shows what it was given.
"""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.tiny import byte_tokenizer

MODEL = "tiny/byte-model"


class FakeServer(ThreadingHTTPServer):
    """Listens on a free port of this machine while it is entered.

    Attributes:
        requests: path and body of each completion that was asked for.
        closed: paths of answers whose client went away.
        most: the most answers that were given at the same time.
    """

    daemon_threads = True

    def __init__(self, **told):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.window = told.pop("window", 4096)
        self.tokenizer = byte_tokenizer(chat=told.pop("chat", True))
        self.key = told.pop("key", None)
        self.tokenizes = told.pop("tokenizes", True)
        self.cut = told.pop("cut", None)  # reads so many tokens and no more, silently
        self.busy = told.pop("busy", [])  # each an error's status and Retry-After
        self.answer = told.pop("answer", None)
        self.events = told.pop("events", None)  # in place of an answer's
        self.slow = told.pop("slow", 0.0)  # seconds between events
        self.states_usage = told.pop("states_usage", True)
        self.breaks_off = told.pop("breaks_off", False)
        self.preamble = told.pop("preamble", "")  # what its template writes before all
        self.models = told.pop("models", [MODEL])
        assert not told, told
        self.requests, self.closed, self.read = [], [], set()
        self.most = self._now = 0
        self.guard = threading.Lock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def tokens(self, body):
        """The tokens of a request's prompt."""
        if "messages" in body:
            text = self.tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=True
            )
            tools = json.dumps(body["tools"]) if body.get("tools") else ""
            return self.tokenizer(self.preamble + tools + text, add_special_tokens=False).input_ids
        prompt = body["prompt"]
        if isinstance(prompt, list):
            return prompt
        ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
        return [0, *ids] if body.get("add_special_tokens", True) else ids


def event(choice=None, **more):
    return {"object": "chunk", "choices": [] if choice is None else [choice], **more}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if not self._allowed():
            return
        data = [
            {"id": name, "object": "model", "owned_by": "vllm", "root": name}
            | ({} if self.server.window is None else {"max_model_len": self.server.window})
            for name in self.server.models
        ]
        self._json(200, {"object": "list", "data": data})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        server = self.server
        if self.path == "/tokenize":
            if not server.tokenizes:
                return self._json(404, {"detail": "Not Found"})
            if "messages" in body and not server.tokenizer.chat_template:
                return self._json(400, {"error": {"message": "no chat template", "code": 400}})
            ids = server.tokens(body)
            return self._json(200, {"count": len(ids), "max_model_len": 4096, "tokens": ids})
        if server.busy:
            status, after = server.busy.pop(0)
            said = {"error": {"message": "too many", "code": status}}
            return self._json(status, said, {} if after is None else {"Retry-After": after})
        if body["model"] not in server.models:
            message = f"The model `{body['model']}` does not exist."
            return self._json(404, {"error": {"message": message, "code": 404}})
        server.requests.append((self.path, body))
        ids = server.tokens(body)[: server.cut]
        if server.window and len(ids) + body["max_tokens"] > server.window:
            message = f"This model's maximum context length is {server.window} tokens."
            return self._json(400, {"error": {"message": message, "code": 400}})
        with server.guard:
            server._now += 1
            server.most = max(server.most, server._now)
        try:
            self._answer(body, ids)
        finally:
            with server.guard:
                server._now -= 1

    def _answer(self, body, ids):
        server = self.server
        text = server.tokenizer.decode(ids)
        found = re.findall(r"key is (\w+)", text)
        answer = server.answer or f" {found[-1] if found else 'unknown'}"
        cached = len(ids) if tuple(ids) in server.read else 0
        server.read.add(tuple(ids))
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(answer)}
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
        if not body.get("stream"):
            return self._json(200, {"choices": [], "usage": usage})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for each in server.events or _events(body, answer, usage, server.states_usage):
                self.wfile.write(f"data: {json.dumps(each, ensure_ascii=False)}\n\n".encode())
                self.wfile.flush()
                time.sleep(server.slow)
            if not server.breaks_off:
                self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            server.closed.append(self.path)
        self.close_connection = True

    def _allowed(self):
        if self.server.key in (None, self.headers.get("Authorization", "")[7:]):
            return True
        self._json(401, {"error": "Unauthorized"})
        return False

    def _json(self, status, said, headers=None):
        data = json.dumps(said).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _events(body, answer, usage, states_usage):
    """What a stream holds: the answer a character at a time, ended as the request says."""
    chat, ended = "messages" in body, "stop"
    stops = [answer.find(stop) for stop in body.get("stop") or () if stop in answer]
    answer = answer[: min(stops, default=len(answer))]
    if len(answer) > body["max_tokens"]:
        answer, ended = answer[: body["max_tokens"]], "length"
    for character in answer:
        part = {"delta": {"content": character}} if chat else {"text": character}
        yield event({"index": 0, "finish_reason": None, **part})
    yield event({"index": 0, "finish_reason": ended, **({"delta": {}} if chat else {"text": ""})})
    if states_usage and body["stream_options"]["include_usage"]:
        yield event(usage=usage)
