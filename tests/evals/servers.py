"""A server of chat completions whose answers a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: From a request's body to (status, document or text).
Answering = Callable[[dict[str, Any]], tuple[int, Any]]


def completion(content: str = "", **message: Any) -> dict[str, Any]:
    """A whole response."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    usage = {"prompt_tokens": 10, "completion_tokens": 4}
    return {"choices": [{**choice, "finish_reason": "stop"}], "usage": usage}


@contextmanager
def server(answer: Answering) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(address, bodies received so far); ``GET /models`` lists the model ``small``."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": "small"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
            self.reply(*answer(body))

        def reply(self, status: int, document: Any) -> None:
            text = document if isinstance(document, str) else json.dumps(document)
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/v1", bodies
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
