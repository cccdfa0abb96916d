"""A real HTTP server on loopback that answers like an OpenAI-compatible endpoint, by a script."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What to answer to the n-th request (from 0): text of a completion, or (status, body, headers).
Script = Callable[[int, dict[str, Any]], "str | tuple[int, str, dict[str, str]]"]


@dataclass
class JudgeServer:
    """What came in, and how many requests were open at once at most."""

    script: Script
    delay_seconds: float = 0.0
    usage: dict[str, int] | None = field(
        default_factory=lambda: {"prompt_tokens": 1000, "completion_tokens": 100}
    )
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_open: int = 0
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[Any, ...]:
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self._open += 1
            self.most_open = max(self.most_open, self._open)
        try:
            time.sleep(self.delay_seconds)
            if path != "/v1/chat/completions":
                return 404, '{"detail": "Not Found"}', {}
            said = self.script(number, body)
            if isinstance(said, tuple):
                return said
            message = {"role": "assistant", "content": said}
            given: dict[str, Any] = {"choices": [{"index": 0, "message": message}]}
            if self.usage is not None:
                given["usage"] = self.usage
            return 200, json.dumps(given), {}
        finally:
            with self._lock:
                self._open -= 1


@contextlib.contextmanager
def judge_server(script: Script, **settings: Any) -> Iterator[JudgeServer]:
    """Listen on a free port for as long as the block lasts."""
    judge = JudgeServer(script, **settings)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            status, text, headers = judge.answer(self.path, dict(self.headers), body)
            with contextlib.suppress(ConnectionError):  # a client that no longer waits
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def marks(**given: float) -> str:
    """A judge's answer, with a reason."""
    return json.dumps({**given, "reason": "as told"})
