"""wrk as the load generator: what it sends, and every answer checked to the last word while it counts.

Owns: the Lua that runs in wrk, and reading what it says. Never: starting routers, CPU figures.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

EVENTS = 64
WORDS = 100
"""What the mock engines answer: so many times "hello", in one piece or in so many events."""
SESSIONS = 1000

LUA = """
wrk.method = "POST"
for name, value in pairs(HEADERS) do wrk.headers[name] = value end
local text = string.rep("Tell me about rivers. ", 40)
wrk.body = '{"model":"m","messages":[{"role":"system","content":"You are a helpful assistant."},' ..
  '{"role":"user","content":"' .. text .. '"}],"max_tokens":100,"temperature":0.2,"stream":STREAM}'
local requests = {}
local sent = 0
checked, wrong, example = 0, 0, ""
init = function()
  for n = 1, SESSIONS do
    wrk.headers["X-Session-Id"] = "session-" .. n
    requests[n] = wrk.format()
  end
end
request = function()
  sent = sent % SESSIONS + 1
  return requests[sent]
end
local words = string.rep("hello ", WORDS)
local function right(status, body)
  if status ~= 200 then return false end
  if not STREAM then return body:find(words, 1, true) ~= nil and body:sub(-1) == "}" end
  local _, events = body:gsub('" hello"', "")
  return events == EVENTS and body:find("data: [DONE]", -40, true) ~= nil
end
response = function(status, headers, body)
  checked = checked + 1
  if not right(status, body) then
    wrong = wrong + 1
    if example == "" then example = status .. " " .. body:sub(-200) end
  end
end
local threads = {}
setup = function(thread) table.insert(threads, thread) end
done = function(summary, latency)
  local checked, wrong, example = 0, 0, ""
  for _, thread in ipairs(threads) do
    checked, wrong = checked + thread:get("checked"), wrong + thread:get("wrong")
    example = thread:get("example")
  end
  local e = summary.errors
  io.write(string.format("\\nRESULT %d %d %d %.1f %.1f\\n", checked, wrong,
    e.connect + e.read + e.write + e.timeout, latency:percentile(50), summary.duration / 1e6))
  io.write("EXAMPLE " .. example:gsub("%s", " ") .. "\\n")
end
"""


@dataclass(frozen=True)
class Loaded:
    """What wrk saw."""

    answers: int
    """Every one of them was checked."""
    wrong: int
    """Answers that were not 200, or not whole to the last word; connections that broke."""
    p50_us: float
    seconds: float
    example: str = ""
    """The end of the first wrong one."""


def script(folder: Path, *, stream: bool, headers: Mapping[str, str]) -> Path:
    """The file that wrk runs."""
    every = {"Content-Type": "application/json", **headers}
    table = "{" + ",".join(f"[{json.dumps(name)}]={json.dumps(value)}" for name, value in every.items()) + "}"
    text = LUA.replace("HEADERS", table).replace("SESSIONS", str(SESSIONS)).replace("WORDS", str(WORDS))
    path = folder / ("stream.lua" if stream else "whole.lua")
    path.write_text(text.replace("STREAM", str(stream).lower()).replace("EVENTS", str(EVENTS)))
    return path


def parse(output: str) -> Loaded:
    """What the script's last lines say. Raises ValueError where they are not there."""
    lines = [line.split() for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise ValueError(f"wrk did not end as it should: {output[-500:]!r}")
    _, answers, wrong, broken, p50_us, seconds = lines[-1]
    example = next((line.removeprefix("EXAMPLE ") for line in output.splitlines() if line.startswith("EXAMPLE ")), "")
    return Loaded(int(answers), int(wrong) + int(broken), float(p50_us), float(seconds), example.strip())


def wrk(port: int, path: Path, connections: int, seconds: float, core: int = 1) -> Loaded:
    """Load on one core for so long."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    amount = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    command = ["taskset", "-c", str(core), "wrk", *amount, "-s", str(path), url]
    return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
