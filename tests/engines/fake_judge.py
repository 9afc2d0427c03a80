"""A judge with a known character: a real process that speaks just enough of the OpenAI API to be asked for verdicts.

    python tests/engines/fake_judge.py --character right

It prints `listening on 127.0.0.1:PORT`; GET /seen tells what it was asked. Characters: `right` reads `quality N` in
what it judges and says so; `first` and `last` prefer an answer for its place; `nonsense` never gives a verdict; `late`
gives it when asked again; `wordy` in a last line after prose; `middle` always gives 3, or a tie; `away` answers 503;
`refusing` 401. Owns: those answers. Never: a model; nothing here imports the project.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PART = re.compile(r"^===== ([A-Z ]+) (\w+) =====\n(.*?)\n===== end \2 =====$", re.DOTALL | re.MULTILINE)


def quality(text: str) -> int:
    found = re.search(r"quality (\d+)", text)
    return int(found[1]) if found else 1


def verdict(character: str, messages: list[dict[str, str]]) -> str:
    asked = [message["content"] for message in messages if message["role"] == "user"]
    parts = {name: text for name, _, text in PART.findall(asked[0])}
    if character == "nonsense" or (character == "late" and len(asked) == 1):
        return "What a lovely answer! I would give it five stars."
    if "ANSWER" in parts:
        score = 3 if character == "middle" else quality(parts["ANSWER"])
        return f"It is fine.\nScore: {score}" if character == "wordy" else json.dumps({"reason": "so", "score": score})
    a, b = quality(parts["ANSWER A"]), quality(parts["ANSWER B"])
    winner = "A" if a > b else "B" if b > a else "tie"
    winner = {"first": "A", "last": "B", "middle": "tie"}.get(character, winner)
    return f"Well.\n**Winner: {winner}**" if character == "wordy" else f'```json\n{{"winner": "{winner}"}}\n```'


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--character", default="right")
    character = parser.parse_args().character
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(200, seen if self.path == "/seen" else {"data": [{"id": "judge"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append(asked | {"authorization": self.headers["authorization"] or ""})
            status = {"away": 503, "refusing": 401}.get(character, 200)
            if status != 200:
                self.answer(status, {"error": {"message": f"I am {character}"}})
                return
            message = {"role": "assistant", "content": verdict(character, asked["messages"])}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            self.answer(200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

        def answer(self, status: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"listening on 127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
