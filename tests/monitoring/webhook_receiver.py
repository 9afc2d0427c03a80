"""A webhook's receiver that misbehaves: a real process. It answers each POST by the next word of its script and writes
what came to a file, one JSON line each.

    python tests/monitoring/webhook_receiver.py FILE 500 hang reset redirect 200

Words: a status, `hang` (takes the request and never answers), `reset` (closes without an answer), `redirect` (302 to
itself). The last word is for all that follow. It prints its port.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> None:
    path, script = Path(sys.argv[1]), sys.argv[2:]
    lock = threading.Lock()
    seen = 0

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal seen
            body = self.rfile.read(int(self.headers["content-length"]))
            with lock:
                word = script[min(seen, len(script) - 1)]
                seen += 1
                with path.open("a") as file:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    line = {"at": time.time(), "word": word, "path": self.path, "headers": headers}
                    file.write(json.dumps({**line, "body": body.decode()}) + "\n")
            if word == "hang":
                time.sleep(3600)
            elif word == "reset":
                self.connection.close()
            else:
                self.send_response(302 if word == "redirect" else int(word))
                if word == "redirect":
                    self.send_header("location", self.path)
                self.send_header("content-length", "0")
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
