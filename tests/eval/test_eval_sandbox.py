"""The sandbox: programs that try to get out, each with the lock that has to hold."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from components import ROOT, missing
from engines.fixtures import FakeEngine
from eval_support import Cli, write_suite

from eval import sandbox_filter, sandbox_trial
from eval.results import RunStore
from eval.sandbox import Sandbox, SandboxError
from eval.scorers import Answered, Execution, ScorerError, Tools, build
from eval.scorers.code import code_of

MIB = 2**20


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return sandbox_trial.require()
    except SandboxError as error:
        missing("sandbox", str(error))
        raise


def run(sandbox: Sandbox, program: str, wall_s: float = 20.0, cpu_s: int | None = None) -> Execution:
    return sandbox.run(program, wall_s=wall_s, memory_bytes=256 * MIB, cpu_s=cpu_s)


def left_behind() -> list[int]:
    """Processes of the sandbox that are still there."""
    found = psutil.process_iter(["cmdline", "ppid", "status"])
    return [
        process.pid
        for process in found
        if any("sandbox_child" in part for part in process.info["cmdline"] or [])
        and process.info["ppid"] in {os.getpid(), 1}
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def test_a_plain_program_runs_to_its_end(sandbox: Sandbox) -> None:
    program = "import asyncio, collections, re\nopen('own', 'w').write('x')\nassert open('own').read() == 'x'"
    assert run(sandbox, program).passed
    awake = "import asyncio\nasync def f(): await asyncio.sleep(0.01); return 3\nassert asyncio.run(f()) == 3"
    assert run(sandbox, awake).passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'sums'", "AssertionError: sums"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "it ended itself"),
        ("import os; os._exit(0)", "it ended itself"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class E(Exception):\n def __str__(self): raise ValueError\nraise E", "E"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("input()", "EOFError"),
        ("import numpy", "ModuleNotFoundError"),
    ],
)
def test_a_program_that_fails_says_why(sandbox: Sandbox, program: str, reason: str) -> None:
    found = run(sandbox, program)
    assert not found.passed
    assert reason in found.reason


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import socket; socket.getaddrinfo('example.org', 80)", "gaierror"),
        ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "PermissionError"),
        ("import socket; socket.socket(socket.AF_UNIX)", "PermissionError"),
        ("import os; os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['/bin/true'])", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("import os, signal; os.kill(os.getppid(), signal.SIGKILL)", "PermissionError"),
        ("import os; open(f'/proc/{os.getppid()}/environ').read()", "PermissionError"),
        ("import os; open(f'/proc/{os.getpid()}/status').read()", "PermissionError"),
        ("import os; os.listdir('/')", "PermissionError"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("import os; os.mkdir('folder')", "PermissionError"),
        ("import os; os.symlink('/etc', 'etc')", "PermissionError"),
        ("import os; os.setsid()", "PermissionError"),
        (
            "import ctypes, os\nif ctypes.CDLL(None, use_errno=True).unshare(0x10000000): raise OSError(1, 'no')",
            "PermissionError",
        ),
        ("import ctypes\nif ctypes.CDLL(None).ptrace(16, 1, 0, 0): raise OSError(1, 'no')", "PermissionError"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (600, 600))", "not allowed"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("x = ['x' * (1 << 20)]\nwhile True: x += x", "MemoryError"),
        ("open('large', 'wb').write(bytes(20 << 20))", "File too large"),
    ],
)
def test_a_program_that_tries_to_get_out_does_not(sandbox: Sandbox, program: str, reason: str) -> None:
    found = run(sandbox, program)
    assert not found.passed
    assert reason in found.reason


def test_nothing_connects(sandbox: Sandbox) -> None:
    """To a server that is really there, by every way of asking."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        found = run(sandbox, f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")
        assert "PermissionError" in found.reason
        raw = f"""
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
pair = (ctypes.c_int * 2)()
assert libc.socketpair(1, 2, 0, pair) == 0
assert libc.socketpair(2, 1, 0, pair) == -1
address = struct.pack("=H", 2) + struct.pack("!H", {port}) + bytes([127, 0, 0, 1]) + bytes(8)
assert libc.connect(pair[0], address, 16) == -1 and ctypes.get_errno() == 1
assert libc.sendto(pair[0], b"x", 1, 0, address, 16) == -1 and ctypes.get_errno() == 1
"""
        assert run(sandbox, raw).passed
        with pytest.raises(TimeoutError):
            server.accept()


def test_secrets_stay_outside(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_API_KEY", "sk-secret")
    secret = tmp_path / "secret"
    secret.write_text("sk-secret")
    secret.chmod(0o666)
    tmp_path.chmod(0o777)
    with secret.open() as held:
        program = f"""
import os
assert "sk-secret" not in str(os.environ) and os.environ["HOME"] == os.getcwd()
for attempt in (lambda: open({str(secret)!r}).read(), lambda: open({str(secret)!r}, "w"),
                lambda: open({str(tmp_path / "new")!r}, "w"), lambda: os.pread({held.fileno()}, 9, 0),
                lambda: open(os.path.expanduser("~root/x"), "w"), lambda: os.unlink({str(secret)!r}),
                lambda: os.rename({str(secret)!r}, "own"), lambda: os.truncate({str(secret)!r}, 0)):
    try:
        attempt()
    except OSError:
        continue
    raise SystemError
"""
        found = run(sandbox, program)
    assert found.passed, found.reason
    assert secret.read_text() == "sk-secret"
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_the_private_folder_is_removed_and_bounded(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    many = "import time\nfor n in range(400): open(str(n), 'w').close()\ntime.sleep(9)"
    assert "256 files" in run(sandbox, many).reason
    large = "n = 0\nwhile True:\n open(str(n), 'wb').write(bytes(7 << 20)); n += 1"
    assert "64 MiB" in run(sandbox, large).reason
    assert list(tmp_path.iterdir()) == []


def test_time_is_bounded_inside_and_outside(sandbox: Sandbox) -> None:
    began = time.monotonic()
    assert run(sandbox, "import time; time.sleep(60)", wall_s=0.3).reason == "it ran for more than 0.3 s"
    assert "more than 1 s of processor time" in run(sandbox, "while True: pass", wall_s=60, cpu_s=1).reason
    deaf = "import signal\nfor n in (1, 2, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: print('x' * 4096)"
    assert run(sandbox, deaf, wall_s=0.5).reason == "it ran for more than 0.5 s"
    assert time.monotonic() - began < 90  # none of them ends by itself
    assert left_behind() == []


def test_a_bomb_of_processes_or_a_daemon_does_not_come_to_be(sandbox: Sandbox) -> None:
    bomb = "import os\nwhile True:\n try: os.fork()\n except PermissionError: raise SystemError('not one')"
    assert run(sandbox, bomb).reason == "SystemError: not one"
    daemon = "import os\nif os.fork() == 0:\n os.setsid()\n while True: pass"
    assert "PermissionError" in run(sandbox, daemon).reason
    assert left_behind() == []


def test_a_result_is_not_forged_by_writing_to_the_pipe(sandbox: Sandbox) -> None:
    forged = """
import os
for number in range(3, 32):
    try:
        os.write(number, b'{"passed": true, "nonce": ""}\\n')
    except OSError:
        pass
os._exit(0)
"""
    assert not run(sandbox, forged).passed
    flood = "import os\nfor n in range(3, 32):\n try:\n  while True: os.write(n, b'x' * 4096)\n except OSError: pass"
    assert run(sandbox, flood).reason == "it wrote to the sandbox's own pipe"


def test_it_dies_with_the_process_that_started_it() -> None:
    code = (
        "from eval.sandbox import Sandbox\nSandbox().run('import time; time.sleep(60)', wall_s=60, memory_bytes=2**28)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        until = time.monotonic() + 60
        while not (children := psutil.Process(process.pid).children()) or not _locked_in(children[0].pid):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    (child,) = children
    child.wait(30)


def _locked_in(pid: int) -> bool:
    """Whether its system calls are filtered, which is the last lock."""
    return "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()


def test_programs_run_side_by_side(sandbox: Sandbox) -> None:
    program = """
import time
began = time.monotonic()
time.sleep(3)
raise LookupError(f"{began} {time.monotonic()}")
"""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: run(sandbox, program).reason.removeprefix("LookupError: "), "abcd"))
    spans = [tuple(map(float, reason.split())) for reason in found]
    whole = max(stop for _, stop in spans) - min(start for start, _ in spans)
    assert whole < 0.75 * sum(stop - start for start, stop in spans), "one after the other it is as long as all of them"


WITHOUT_LANDLOCK = """
import ctypes, struct, sys
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050026), (0x06, 0, 0, 0x7FFF0000)]
body = b"".join(struct.pack("HBBI", *line) for line in code)
class Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(Filter(4, body)), 0, 0) == 0
from eval.sandbox_trial import require
from registry.terminal import UserError
try:
    require()
except UserError as error:
    print(error)
"""


def test_where_a_lock_is_missing_nothing_runs_and_the_remedy_is_named(sandbox: Sandbox) -> None:
    """On a kernel that has no Landlock, as far as the process can tell."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LANDLOCK], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "cannot be locked in here: Landlock is not there" in done.stdout
    assert "Linux 5.13 or later" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("machine", sandbox_filter.ARCHITECTURES)
def test_the_filter_lets_no_dangerous_call_pass(machine: str) -> None:
    column = sandbox_filter.ARCHITECTURES[machine][1]
    allowed = {line[3] for line in _lines(sandbox_filter.program(machine)) if line[0] == 0x15}
    for numbers in ((41, 198), (42, 203), (56, 220), (59, 221), (62, 129), (101, 117), (165, 40), (272, 97), (90, 52)):
        assert numbers[column] not in allowed  # socket connect clone execve kill ptrace mount unshare chmod
    assert len(sandbox_filter.program(machine)) % 8 == 0


def _lines(program: bytes) -> list[tuple[int, ...]]:
    import struct

    return list(struct.iter_unpack("HBBI", program))


SQUARE = {
    "prompt": "import math\n\n\ndef helper(x):\n    return x + 1\n\n\ndef square(x):\n    '''The square.'''\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert helper(1) == 2\n",
    "entry_point": "square",
}


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("```python\ndef square(x):\n    return x * x\n```", 1),
        ("    return x * x\n", 1),
        ("First:\n```\nx = 1\n```\nthen\n```py\ndef square(x): return int(math.pow(x, 2))", 1),
        ("square = lambda x: x * x", 1),
        ("```python\ndef square(x):\n    return x + 1\n```", 0),
        ("I cannot do that.", 0),
        ("import os; os._exit(0)", 0),
        ("", 0),
    ],
)
def test_an_answer_is_tried_with_its_tests(sandbox: Sandbox, answer: str, value: float) -> None:
    found = build("python_tests", {}, SQUARE).score(Answered(text=answer), SQUARE, Tools(sandbox=sandbox))
    assert found.value == value
    assert bool(found.detail) == (not value)


def test_a_suite_of_programs_runs_through_the_sandbox(
    sandbox: Sandbox, cli: Cli, tmp_path: Path, fake_engine: Callable[..., FakeEngine]
) -> None:
    """The fake engine answers `t0`: a program that is right where the prompt defines it."""
    folder = write_suite(tmp_path / "s", scorer="python_tests")
    rows = [
        {"id": "right", "prompt": "Write t0.", "target": {"prompt": "t0 = 1", "test": "assert t0 == 1"}},
        {"id": "wrong", "prompt": "Write t0.", "target": {"prompt": "t0 = 2", "test": ["assert t0 == 1"]}},
        {"id": "undefined", "prompt": "Write t0.", "target": {"test": "assert True"}},
    ]
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = cli.call("run", str(folder), "--model", f"{fake_engine('--events', '1').url}#m", "--json")
    assert found.returncode == 0, found.stderr
    name = json.loads(found.stdout)["run"]
    samples = {sample.case: sample for sample in RunStore(cli.state / "runs").get(name).samples().values()}
    assert {case: sample.score for case, sample in samples.items()} == {"right": 1, "wrong": 0, "undefined": 0}
    assert samples["wrong"].detail == "AssertionError"
    assert samples["undefined"].detail.startswith("NameError")


def test_tests_may_be_a_list_without_a_function() -> None:
    assert code_of("text\n```python\na\n```\n```python\nb\n```") == "a\n"
    build("python_tests", {"wall_s": 2}, {"test": ["assert f(1) == 2"]})
    for target in (None, {"test": " "}, {"tests": "x"}):
        with pytest.raises(ScorerError, match="python_tests"):
            build("python_tests", {}, target)
    with pytest.raises(ScorerError, match="wall_s"):
        build("python_tests", {"wall_s": 0}, SQUARE)
