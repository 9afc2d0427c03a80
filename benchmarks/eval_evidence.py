"""What evaluation decides on real engines, with the answer known beforehand; written into docs/evaluation-evidence.md.

    python benchmarks/eval_evidence.py MODEL.gguf [aa q4 broken gsm8k] [--write docs/evaluation-evidence.md]

    aa       v1 against itself over regression-core: PAIRS comparisons of fresh runs, each under a seed of its own
    q4       v1 (Q4_1) against its Q4_0 requantisation over regression-core: verdict, flips, speed and cost
    broken   v1 against itself with another chat template, on ever larger samples until it is "worse"
    gsm8k    a whole run of GSM8K with a kill -9 in the middle against one without (--data gsm8k_test.jsonl)

The first three run in a yard of their own with three llama.cpp engines. `gsm8k` asks a scripted engine that is right on
a part of the questions (tests/eval/scripted_engine.py) all 1,319, and the yard's v1 the first --real of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from document import write  # the neighbour in this folder
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "system")]

from stack import MODELYARD, Stack, free_ports, until  # noqa: E402 - lies beside the tests

PAIRS = 20
ALPHA = 0.05
SUITE = "regression-core"
OTHER_TEMPLATE = "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"
"""Llama 2's way of marking turns, on a model that was trained on ChatML."""
CONFIG = """
server: {{workers: 1}}
prices: {{currency: USD, gpu_hour: 2.50, cpu_hour: 0.12, kwh: 0.30, pue: 1.2}}
models:
  assistant:
    versions:
      v1: {{artifact: "file:{model}", engine: llama.cpp, engine_args: {{n_threads: {threads}}}}}
      v2: {{artifact: {{requantize: v1, type: Q4_0}}, engine: llama.cpp, engine_args: {{n_threads: {threads}}}}}
      broken: {{artifact: "file:{model}", engine: llama.cpp, chat_template: "{template}",
               engine_args: {{n_threads: {threads}}}}}
    route: {{v1: 10000, v2: 0, broken: 0}}
"""


def run_cli(yard: Stack, *arguments: str) -> Any:
    """What a command prints as JSON, whatever its verdict."""
    found = yard.cli("eval", *arguments, "--json", check=None, timeout_s=7200)
    if found.returncode not in (0, 1, 3):
        raise SystemExit(found.stderr)
    return json.loads(found.stdout)


def compared(yard: Stack, baseline: str, candidate: str, *options: str) -> Any:
    sides = ("--baseline", f"assistant@{baseline}", "--candidate", f"assistant@{candidate}")
    return run_cli(yard, "compare", SUITE, *sides, *options)


def points(value: float) -> str:
    return f"{100 * value:+.1f}"


def aa(yard: Stack, options: argparse.Namespace) -> list[str]:
    """Each pair is two fresh runs under one seed; the sampling is the suite's, so noise is the engine's batching."""
    found = [
        compared(yard, "v1", "v1", "--seed", str(seed), "--fresh", "--no-cache", *limit(options))
        for seed in range(options.pairs)
    ]
    kinds = Counter(one["verdict"]["kind"] for one in found)
    flips = [one["overall"]["gains"] + one["overall"]["losses"] for one in found]
    # At most so many "worse" of PAIRS are compatible with alpha / 2 each, at 99%.
    allowed = int(stats.binom.ppf(0.99, len(found), ALPHA / 2))
    ok = "holds" if kinds["worse"] <= allowed else "DOES NOT HOLD"
    return [
        f"{len(found)} A/A comparisons of v1, seeds 0 to {len(found) - 1}, n = {found[0]['overall']['n']} cases each:",
        "",
        "| verdict | comparisons |",
        "|---|---:|",
        *(f"| {kind} | {count} |" for kind, count in sorted(kinds.items())),
        "",
        f"Worse {kinds['worse']} times; alpha {ALPHA:g} allows {allowed} of {len(found)} (99%): {ok}. Scores that "
        f"differ although nothing changed: {min(flips)} to {max(flips)} cases a comparison.",
    ]


def q4(yard: Stack, options: argparse.Namespace) -> list[str]:
    value = compared(yard, "v1", "v2", "--aa", "--no-cache", *limit(options))
    overall = value["overall"]
    spent, before = (
        {one["basis"]: one for one in value[side]["spent"] if one["method"].startswith("in-flight")}
        for side in ("candidate", "baseline")
    )
    return [
        f"v1 (Q4_1) {overall['baseline']['mean']:.3f}, v2 (Q4_0) {overall['candidate']['mean']:.3f}, "
        f"n = {overall['n']}; difference {points(overall['difference'])} points [{points(overall['interval']['low'])}, "
        f"{points(overall['interval']['high'])}], p = {overall['p']:.3g} ({overall['test']}).",
        "",
        f"Verdict: **{value['verdict']['text']}**. {overall['losses']} cases lost, {overall['gains']} gained; A/A "
        f"differs in {100 * value['noise_floor']['discordance']:.1f}% of the scores, this pair in "
        f"{100 * (overall['losses'] + overall['gains']) / overall['n']:.1f}%.",
        "",
        "| flip | | v1 | v2 |",
        "|---|---|---|---|",
        *(
            f"| `{one['case']}` | {'gained' if one['gained'] else 'lost'} | {cell(one['baseline'])} "
            f"| {cell(one['candidate'])} |"
            for one in value["flips"][:6]
        ),
        "",
        "| candidate / baseline | ratio | interval |",
        "|---|---:|---:|",
        *(
            f"| {one['name']} | {one['ratio']:.2f} | [{one['interval']['low']:.2f}, {one['interval']['high']:.2f}] |"
            for one in value["ratios"]
        ),
        *(
            f"| cost per correct answer, {basis} | {spent[basis]['per_correct'] / before[basis]['per_correct']:.2f} | |"
            for basis in spent
            if before.get(basis, {}).get("per_correct") and spent[basis]["per_correct"]
        ),
    ]


def cell(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return f"`{line[:60]}`" if line else "(nothing)"


def broken(yard: Stack, options: argparse.Namespace) -> list[str]:
    rows = []
    total = 0
    for count in (16, 24, 32, 48, 64, 96, 128, 200):
        value = compared(yard, "v1", "broken", "--sample", str(count))
        overall = value["overall"]
        total = max(total, overall["n"])
        rows.append(
            f"| {overall['n']} | {overall['baseline']['mean']:.2f} | {overall['candidate']['mean']:.2f} "
            f"| {points(overall['difference'])} [{points(overall['interval']['low'])}, "
            f"{points(overall['interval']['high'])}] | {overall['p']:.2g} | {value['verdict']['kind']} |"
        )
        if value["verdict"]["kind"] == "worse":
            break
    whole = len((ROOT / "configs" / "suites" / SUITE / "cases.jsonl").read_text().splitlines())
    return [
        f"The same weights with Llama 2's chat template in place of ChatML; the suite has {whole} cases:",
        "",
        "| cases | v1 | broken | difference | p | verdict |",
        "|---:|---:|---:|---|---:|---|",
        *rows,
    ]


def limit(options: argparse.Namespace) -> list[str]:
    return ["--sample", str(options.sample)] if options.sample else []


def gsm8k(yard: Stack, options: argparse.Namespace) -> list[str]:
    """Killed after about a third of the samples, and run to its end by the same command."""
    lines = ["| engine | samples | kept at the kill | asked | score, killed | score, whole | tables |",
             "|---|---:|---:|---:|---|---|---|"]  # fmt: skip
    (port,) = free_ports(1)
    argv = [sys.executable, str(ROOT / "tests" / "eval" / "scripted_engine.py"), "--port", str(port)]
    with subprocess.Popen([*argv, "--data", str(options.data)]) as engine:
        url = f"http://127.0.0.1:{port}"
        until(lambda: httpx.get(url, trust_env=False).status_code == 200)
        try:
            asked = lambda: sum(httpx.get(f"{url}/asked", trust_env=False).json().values())  # noqa: E731
            lines.append(killed("scripted", options, f"{url}#m", 0, asked, {}))
        finally:
            engine.kill()
    if options.real:
        environment = {"MODELYARD_URL": yard.url, "MODELYARD_ADMIN_URL": yard.admin_url}
        environment["MODELYARD_ADMIN_TOKEN"] = (yard.state / "admin.token").read_text().strip()
        lines.append(killed("llama.cpp, v1", options, "assistant@v1", options.real, lambda: "-", environment))
    return lines


def killed(
    name: str,
    options: argparse.Namespace,
    ref: str,
    count: int,
    asked: Callable[[], object],
    environment: dict[str, str],
) -> str:
    """A row: the run that was killed beside the one that was not, in state directories of their own."""
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        arguments = ["eval", "run", "gsm8k", "--path", str(options.data), "--model", ref, "--no-cache", "--json"]
        arguments += ["--concurrency", "1", "--sample", str(count)] if count else ["--concurrency", "8"]

        def start(state: str) -> subprocess.Popen[str]:
            env = {**os.environ, **environment, "MODELYARD_STATE_DIR": str(Path(folder) / state)}
            return subprocess.Popen([*MODELYARD, *arguments], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)

        def journalled() -> int:
            return sum(file.read_bytes().count(b"\n") for file in Path(folder).glob("a/runs/*/samples.jsonl"))

        with start("a") as first:
            while journalled() < (count or 1319) // 3 and first.poll() is None:
                time.sleep(0.01)
            first.send_signal(signal.SIGKILL)
        kept = journalled()
        with start("a") as again:
            resumed = json.loads(again.communicate()[0])
        total = asked()
        with start("b") as other:
            whole = json.loads(other.communicate()[0])
        tables = ["scorers", "slices", "overall"]
        same = all(resumed[part] == whole[part] for part in tables) and resumed["done"] == whole["done"]

        def score(value: Any) -> str:
            overall = value["overall"]
            return f"{overall['mean']:.4f} [{overall['interval']['low']:.4f}, {overall['interval']['high']:.4f}]"

        return (
            f"| {name} | {whole['done']} | {kept} | {total} | {score(resumed)} | {score(whole)} "
            f"| {'the same' if same else 'DIFFERENT'} |"
        )


PARTS: dict[str, Callable[[Stack, argparse.Namespace], list[str]]] = {
    "aa": aa,
    "q4": q4,
    "broken": broken,
    "gsm8k": gsm8k,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file, e.g. the quickstart's SmolLM2 in Q4_1")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them without any")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="A/A comparisons")
    parser.add_argument("--sample", type=int, default=0, help="cases of regression-core; 0 for all")
    parser.add_argument("--threads", type=int, default=2, help="of each engine")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "gsm8k_test.jsonl")
    parser.add_argument("--real", type=int, default=100, help="GSM8K samples on the real engine")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put each part between its markers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        template = OTHER_TEMPLATE.replace('"', '\\"')
        (Path(folder) / "other.jinja").write_text(template)
        config = CONFIG.format(
            model=options.model.absolute(), threads=options.threads, template=Path(folder) / "other.jinja"
        )
        yard = Stack(Path(folder), config)
        try:
            yard.up(timeout_s=180)
            for name in options.parts or PARTS:
                began = time.monotonic()
                lines = PARTS[name](yard, options)
                command = f"`python benchmarks/eval_evidence.py {options.model.name} {name}`"
                where = f"{platform.machine()}, {os.cpu_count()} cores, {(time.monotonic() - began) / 60:.0f} minutes"
                text = "\n".join([f"{command} on {where}:", "", *lines])
                sys.stdout.write(f"## {name}\n\n{text}\n\n")
                sys.stdout.flush()
                if options.write:
                    write(options.write, f"benchmarks/eval_evidence.py {name}", text)
        finally:
            yard.stop()


main()
