"""What `modelyard up` shows: progress while it starts, how to call it when it is ready, then what happens.

Owns: drawing for `serving.control.ui.Ui`. Never: starting anything. Methods are called from several threads; rich's
progress display takes care of its own, and plain lines are single writes.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from registry import terminal
from serving.commands.render import size
from serving.control.ui import EngineState, Ready

if TYPE_CHECKING:
    from registry.artifacts import Progress as StepProgress

LOUD_LOGGERS = "modelyard"


class Screen:
    """A terminal, or a log file: there every step is a line of its own."""

    def __init__(self, console: Console | None = None, *, state_dir: Path | None = None) -> None:
        self._console = console or terminal.console(stderr=True)
        self._state_dir = state_dir
        self._display: Progress | None = None
        self._engines: dict[str, TaskID] = {}
        self._states: dict[str, str] = {}
        self._is_ready = False
        self._lock = threading.Lock()

    # What the control plane tells

    def progress(self) -> StepProgress:
        """A bar for one long step."""
        return Step(self)

    def say(self, text: str) -> None:
        """A remark; with the time once everything is up."""
        lead = time.strftime("%H:%M:%S  ") if self._is_ready else ""
        self._console.print(f"[dim]{lead}[/]{escape(text)}")

    def engines(self, states: Sequence[EngineState]) -> None:
        """A bar for each engine, until it is ready."""
        for one in states:
            if self._states.get(one.id) == one.state:
                continue
            self._states[one.id] = one.state
            self._engine_changed(one)

    def ready(self, ready: Ready) -> None:
        """How to call it, and what to do next."""
        self.close()
        self._is_ready = True
        for one in ready.failed:
            self._console.print(f"[bold red]! {escape(one.id)} did not come up:[/] {escape(one.detail)}")
        sys.stdout.write(welcome(ready, time.time() - psutil.Process().create_time(), self._state_dir))
        sys.stdout.flush()

    def stopping(self, text: str) -> None:
        """The stop has begun."""
        self.close()
        self._console.print(f"\n{escape(text)}")

    def stopped(self) -> None:
        """Everything is gone."""
        self._console.print("stopped; nothing is left running")

    # How it is drawn

    @property
    def is_live(self) -> bool:
        """Whether lines can be drawn over."""
        return self._console.is_terminal

    def display(self) -> Progress:
        """The bars, started when first needed."""
        with self._lock:
            if self._display is None:
                self._display = Progress(
                    SpinnerColumn(finished_text="[green]✓[/]"),
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=28),
                    TextColumn("[dim]{task.fields[detail]}[/]"),
                    TimeElapsedColumn(),
                    console=self._console,
                )
                self._display.start()
            return self._display

    def close(self) -> None:
        """End the bars; what they showed last stays."""
        with self._lock:
            if self._display is not None:
                self._display.stop()
                self._display = None

    def _engine_changed(self, one: EngineState) -> None:
        last = one.detail.strip().splitlines()[-1] if one.detail.strip() else ""
        if not self.is_live:
            self._console.print(f"{one.id}: {one.state}{': ' + escape(last) if last else ''}")
            return
        display = self.display()
        if one.id not in self._engines:
            self._engines[one.id] = display.add_task(f"engine {one.id}", total=None, detail=one.state)
        settled = one.state in ("ready", "failed", "stopped")
        detail = f"{one.state}  {last}"[:80].rstrip()
        task = self._engines[one.id]
        if settled:
            display.update(task, detail=detail, total=1, completed=1)
        else:
            display.update(task, detail=detail)


class Step:
    """One long step of one thread: a bar on a terminal, a line at its start and end elsewhere."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._task: TaskID | None = None
        self._title = ""
        self._total: int | None = None
        self._done = 0
        self._begin = 0.0

    def start(self, title: str, total_bytes: int | None) -> None:
        """A step begins; `total_bytes` is None where it is not known."""
        self._title, self._total, self._done, self._begin = title, total_bytes, 0, time.monotonic()
        if not self._screen.is_live:
            self._screen.say(title)
            return
        self._task = self._screen.display().add_task(escape(title), total=total_bytes, detail="")

    def advance(self, n: int) -> None:
        """`n` more bytes."""
        self._done += n
        if self._task is not None:
            detail = f"{size(self._done)} of {size(self._total)}" if self._total else size(self._done)
            self._screen.display().update(self._task, advance=n, detail=detail)

    def done(self) -> None:
        """The step is over."""
        if self._task is not None:
            total = self._total or self._done or 1
            self._screen.display().update(self._task, total=total, completed=total)
        elif time.monotonic() - self._begin > 1:
            self._screen.say(f"{self._title}: done in {time.monotonic() - self._begin:.0f} s")


class ScreenLog(logging.Handler):
    """Warnings of the control plane as remarks: an engine that died, a worker that came back."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.say(record.getMessage())


def program() -> str:
    """How the person at this terminal calls this program."""
    called = Path(sys.argv[0])
    on_path = shutil.which("modelyard")
    if called.name != "modelyard" or (on_path is not None and Path(on_path).absolute() == called.absolute()):
        return "modelyard"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called)


def welcome(ready: Ready, took_s: float, state_dir: Path | None) -> str:
    """The text after a successful start."""
    model = next(iter(ready.models), "assistant")
    labels = list(ready.models.get(model, ()))
    here = f"export MODELYARD_STATE_DIR={shlex.quote(str(state_dir))}\n  " if state_dir else ""
    name = program()
    served = "\n".join(
        f"  {public}: {', '.join(f'{public}@{label}' for label in labels)}" for public, labels in ready.models.items()
    )
    compare = ""
    moves = ""
    if len(labels) > 1:
        first, second = labels[:2]
        compare = f"  {name} eval compare quickstart --baseline {model}@{first} --candidate {model}@{second}\n"
        moves = f"  {name} route set {model} {first}=5000 {second}=5000\n  {name} rollback {model}\n"
    curl = f"curl -i {f'--cacert {shlex.quote(ready.certificate)} ' if ready.certificate else ''}{ready.url}"
    needs = bearer = imports = ""
    api_key = '"none"'
    if ready.keys_required:
        needs = f"Requests need an API key; this makes one and shows it once:\n  {here}{name} keys create --name me\n\n"
        imports = "  import os\n"
        bearer, api_key = ' -H "authorization: Bearer $KEY"', 'os.environ["KEY"]'
    adopted = f", {ready.adopted_workers} router workers adopted" if ready.adopted_workers else ""
    return f"""
Modelyard is up after {took_s:.1f} s{adopted}: {ready.url}  (admin API: {ready.admin_url})

{served}

{needs}Ask it; the header x-modelyard-version says which version answered:
  {curl}/v1/chat/completions -H 'content-type: application/json'{bearer} \\
    -d '{{"model": "{model}", "temperature": 0, "max_tokens": 32,
         "messages": [{{"role": "user", "content": "Name three primary colors."}}]}}'

From Python, with the official SDK (pip install openai):
{imports}  from openai import OpenAI
  client = OpenAI(base_url="{ready.url}/v1", api_key={api_key})
  answer = client.chat.completions.create(
      model="{model}", messages=[{{"role": "user", "content": "Write one sentence about the sea."}}], max_tokens=32)
  print(answer.choices[0].message.content)

Next, in another terminal:
  {here}{name} status --watch
{compare}{moves}  {name} cost

Ctrl-C finishes the requests in flight and stops everything.
"""
