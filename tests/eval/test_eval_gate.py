"""Gates: the policy's file, its decision, its exit code, and the verdict in a real control plane's registry."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from engines.fixtures import start_fake_engine
from eval_support import Cli, write_suite

from eval import policy
from eval.errors import PolicyError
from registry.manifest import Manifest
from registry.store import Registry
from registry.terminal import NotThereError
from registry.verdicts import GateVerdict, Verdicts
from serving.control.ui import Options

FakeEngines = Callable[..., Any]


def write_policy(folder: Path, **changes: Any) -> Path:
    path = folder / "release.yaml"
    suite = {"suite": "s/suite.yaml"} | changes.pop("entry", {})
    path.write_text(yaml.safe_dump({"name": "release", "suites": [suite]} | changes))
    return path


def gate(cli: Cli, path: Path, good: str, other: str, *more: str) -> tuple[int, Any]:
    found = cli.call("gate", str(path), "--baseline", good, "--candidate", other, "--json", *more)
    return found.returncode, json.loads(found.stdout) if found.stdout else found.stderr


def test_a_policy_is_one_verdict_and_an_exit_code(cli: Cli, tmp_path: Path, fake_engine: FakeEngines) -> None:
    write_suite(tmp_path / "s", cases=120)
    good, same, bad = (f"{fake_engine('--word', word).url}#fake" for word in ("t", "t", "x"))
    code, found = gate(cli, write_policy(tmp_path, entry={"margin": 0.1}), good, same)
    assert (code, found["verdict"], found["text"]) == (0, "pass", "passes all 1 checks")
    assert "not in a registry" in found["note"], "without an admin API nothing is pinned"
    code, found = gate(cli, write_policy(tmp_path, entry={"margin": 0.1}), good, bad)
    assert (code, found["verdict"], found["text"]) == (1, "fail", "fails: small overall")
    (suite,) = found["evidence"]["suites"]
    assert (suite["n"], suite["difference"], suite["margin"]) == (120, -0.5, 0.1)
    code, found = gate(cli, write_policy(tmp_path, entry={"margin": 0.01}), good, same)
    assert (code, found["verdict"]) == (3, "inconclusive")
    code, found = gate(cli, write_policy(tmp_path, entry={"margin": 0.1, "samples_min": 121}), good, same)
    assert (code, found["text"]) == (3, "inconclusive: small samples")
    shown = cli.call("gate", str(write_policy(tmp_path)), "--baseline", good, "--candidate", bad)
    assert (shown.returncode, "gate release" in shown.stdout) == (1, True)


def test_compare_decides_by_a_policy_about_its_suite(cli: Cli, tmp_path: Path, fake_engine: FakeEngines) -> None:
    suite = str(write_suite(tmp_path / "s", cases=30) / "suite.yaml")
    good, bad = (f"{fake_engine('--word', word).url}#fake" for word in ("t", "x"))
    path = str(write_policy(tmp_path, entry={"margin": 0.3, "sample": 20}, max_latency_ratio=1000))
    sides = ("--baseline", good, "--candidate", good)
    found = json.loads(cli.call("compare", suite, *sides, "--gate", path, "--json").stdout)
    assert (found["gate"]["exit_code"], found["gate"]["verdict"], found["overall"]["n"]) == (0, "pass", 20)
    assert [check["name"] for check in found["gate"]["evidence"]["checks"]] == ["overall", "latency"]
    assert cli.call("compare", suite, "--baseline", good, "--candidate", bad, "--gate", path).returncode == 1
    other = cli.call("compare", "quickstart", *sides, "--gate", path)
    assert (other.returncode, "run modelyard eval gate" in other.stderr) == (2, True)


def test_slices_and_ratios_can_fail_a_gate_too(cli: Cli, tmp_path: Path, fake_engine: FakeEngines) -> None:
    """The slower engine is as right as the baseline; the other is wrong in every slice."""
    folder = write_suite(tmp_path / "s", cases=60)
    rows = [json.loads(line) | {"slice": f"s{index % 2}"} for index, line in
            enumerate((folder / "cases.jsonl").read_text().splitlines())]  # fmt: skip
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    good = f"{fake_engine().url}#fake"
    slow = f"{fake_engine('--first-token-delay-s', '1.5').url}#fake"
    bad = f"{fake_engine('--word', 'x').url}#fake"
    path = write_policy(tmp_path, entry={"margin": 0.4}, max_latency_ratio=2.0, max_cost_ratio=2.0)
    code, found = gate(cli, path, good, slow, "--concurrency", "16")
    assert (code, found["text"]) == (1, "fails: small latency, small engine time")
    path = write_policy(tmp_path, entry={"margin": 0.9, "slices_not_worse": "all"})
    code, found = gate(cli, path, good, bad)
    assert (code, found["text"]) == (1, "fails: small slice s0")
    path = write_policy(tmp_path, entry={"margin": 0.9, "slices_not_worse": ["s1"]})
    assert gate(cli, path, good, bad)[0] == 0, "every case of s1 was wrong before"
    path = write_policy(tmp_path, entry={"margin": 0.9, "slices_not_worse": ["s7"]})
    assert gate(cli, path, good, bad)[1]["text"] == "inconclusive: small slice s7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not YAML"),
        ("name: a b\nsuites: [{suite: x}]", "policy name 'a b' is not usable"),
        ("name: a\nsuites: []", "names no suite"),
        ("name: a\nsuites: [{suite: x}, {suite: x}]", "named twice"),
        ("name: a\nsuites: [{suite: x, margn: 1}]", "margn"),
        ("name: a\nsuites: [{suite: x, margin: 2}]", "margin of x is 2"),
        ("name: a\nsuites: [{suite: x}]\nalpha: 0.7", "alpha is 0.7"),
        ("name: a\nsuites: [{suite: x, slices_not_worse: some}]", "a list of slices, or `all`"),
        ("name: a\nsuites: [{suite: x}]\nmax_cost_ratio: 0", "max_cost_ratio is 0"),
    ],
)
def test_a_policy_that_cannot_be_used_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=message) as caught:
        policy.load(path)
    assert "\n" not in str(caught.value)


def test_a_policy_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="cannot be read"):
        policy.load(tmp_path / "none.yaml")


def test_the_digest_is_of_what_is_asked_not_of_its_description(tmp_path: Path) -> None:
    one = policy.load(write_policy(tmp_path, description="x"))
    same = policy.load(write_policy(tmp_path, description="y"))
    other = policy.load(write_policy(tmp_path, alpha=0.01))
    assert one.digest == same.digest != other.digest


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serving" / "control"))
    from yard_harness import CONFIG, RunningYard

    engines = [start_fake_engine("--word", word) for word in ("t", "t")]
    text = CONFIG.format(workers=1, first=engines[0].url, second=engines[1].url)
    try:
        with RunningYard(tmp_path_factory.mktemp("yard"), text + "    require_gate: release\n", Options()) as running:
            yield running
    finally:
        for engine in engines:
            engine.kill()
            assert engine.process.stdout is not None
            engine.process.stdout.close()


def test_a_verdict_is_written_to_the_yard_and_opens_its_route(yard: Any, tmp_path: Path) -> None:
    cli = Cli(yard.state.root)
    write_suite(tmp_path / "s", cases=120)
    path = write_policy(tmp_path, entry={"margin": 0.1})
    half = {"weights": {"v1": 5000, "v2": 5000}}
    assert yard.admin.put("/models/m/route", json=half).status_code == 409
    code, found = gate(cli, path, "m@champion", "m@v2", "--fresh")
    assert (code, found["verdict"], found["note"]) == (0, "pass", f"written as {found['id']}")
    assert (found["baseline"], found["candidate"]) == ("v1", "v2")
    (kept,) = yard.get("models", "m", "gates")
    assert (kept["policy_digest"], kept["id"]) == (policy.load(path).digest, found["id"])
    assert kept["suites"] == {"small": found["evidence"]["suites"][0]["digest"]}
    assert yard.admin.put("/models/m/route", json=half).status_code == 200
    (listed,) = json.loads(cli.call("gate", "list", "--json").stdout)
    assert listed["id"] == kept["id"]
    assert "m@v2" in cli.call("gate", "list", "m").stdout


def test_verdicts_can_be_listed_where_no_yard_runs(cli: Cli) -> None:
    cli.state.mkdir(parents=True)
    registry = Registry.open(cli.state / "registry.db")
    digests = [registry.register("m", label, Manifest(engine="external", url=f"http://{label}"), author="me",
                                 at=1.0).digest for label in ("v1", "v2")]  # fmt: skip
    verdict = GateVerdict(
        model="m", policy="release", policy_digest="sha256:0", baseline="v1", baseline_digest=digests[0],
        candidate="v2", candidate_digest=digests[1], verdict="fail", author="me", created_at=5.0,
    )  # fmt: skip
    Verdicts(registry.engine).record(verdict)
    registry.close()
    (found,) = json.loads(cli.call("gate", "list", "--json").stdout)
    assert (found["verdict"], found["candidate"]) == ("fail", "v2")
    assert json.loads(cli.call("gate", "list", "--policy", "other", "--json").stdout) == []
