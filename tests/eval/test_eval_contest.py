"""Several candidates against one baseline, the noise floor that is kept, and flips to page through."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_support import Cli, write_suite

from eval.floors import Floors

FakeEngines = Callable[..., Any]


def test_several_candidates_are_one_family(cli: Cli, tmp_path: Path, fake_engine: FakeEngines) -> None:
    """The fakes differ in their words: one as good as the baseline, one that gets nothing right."""
    suite = str(write_suite(tmp_path / "s", cases=40))
    good, same, bad = (f"{fake_engine('--word', word).url}#fake" for word in ("t", "t", "x"))
    found = cli.call(
        "compare", suite, "--baseline", good, "--candidate", same, "--candidate", bad, "--json", "--price", "3eur"
    )
    assert found.returncode == 1, found.stderr
    first, second = json.loads(found.stdout)["comparisons"]
    assert (first["verdict"]["kind"], second["verdict"]["kind"]) == ("inconclusive", "worse")
    assert second["gates"][0]["p_adjusted"] == pytest.approx(2 * second["overall"]["p"])
    assert second["candidates"] == 2
    alone = json.loads(cli.call("compare", suite, "--baseline", good, "--candidate", bad, "--json").stdout)
    assert alone["overall"]["difference"] == second["overall"]["difference"]
    assert alone["overall"]["interval"]["low"] > second["overall"]["interval"]["low"], "a family's intervals are wider"
    (cost,) = first["candidate"]["spent"]
    assert (cost["basis"], cost["currency"], cost["answered"]) == ("engine-seconds", "EUR", 40)
    assert cost["per_correct"] == pytest.approx(2 * cost["total"] / 40)
    (cost,) = second["candidate"]["spent"]
    assert cost["per_correct"] is None, "not one answer was right"
    names = [one["name"] for one in first["ratios"]]
    assert names == ["time to first token", "latency", "output tokens", "engine time"]
    assert all(one["n"] == 40 and one["interval"]["low"] <= one["ratio"] <= one["interval"]["high"]
               for one in first["ratios"])  # fmt: skip
    text = cli.call("compare", suite, "--baseline", good, "--candidate", same, "--candidate", bad)
    assert "2 candidates against one baseline" in text.stdout
    twice = cli.call("compare", suite, "--baseline", good, "--candidate", bad, "--candidate", bad)
    assert (twice.returncode, "are the same version" in twice.stderr) == (2, True)


def test_the_noise_floor_is_kept_for_later_comparisons(cli: Cli, tmp_path: Path, fake_engine: FakeEngines) -> None:
    suite = str(write_suite(tmp_path / "s"))
    base, other = (f"{fake_engine('--word', word).url}#fake" for word in ("t", "x"))
    plain = json.loads(cli.call("compare", suite, "--baseline", base, "--candidate", other, "--json").stdout)
    assert plain["noise_floor"] is None
    with_floor = cli.call("compare", suite, "--baseline", base, "--candidate", other, "--aa", "--json")
    floor = json.loads(with_floor.stdout)["noise_floor"]
    assert (floor["discordance"], floor["exact_match"], floor["n"], floor["bound"]) == (0, 1, 12, 0)
    later = cli.call("compare", suite, "--baseline", base, "--candidate", other, "--seed", "3", "--json")
    assert json.loads(later.stdout)["noise_floor"] == floor, "another seed is another run of the same version"
    digest = plain["suite"]["digest"]
    floors = Floors(cli.state / "floors")
    assert floors.get(digest, base) is not None
    assert floors.get(digest, other) is None


def test_flips_are_paged_with_everything_that_tells_why(cli: Cli, tmp_path: Path, fake_engine: FakeEngines) -> None:
    suite = str(write_suite(tmp_path / "s"))
    base, other = (f"{fake_engine('--word', word).url}#fake" for word in ("t", "x"))
    value = json.loads(cli.call("compare", suite, "--baseline", base, "--candidate", other, "--json").stdout)
    runs = value["baseline"]["run"], value["candidate"]["run"]
    flips = json.loads(cli.call("flips", *runs, "--json").stdout)
    assert [flip["case"] for flip in flips] == [f"case-{index:03d}" for index in range(0, 12, 2)]
    assert {(flip["baseline_score"], flip["candidate_score"], flip["gained"]) for flip in flips} == {(1, 0, False)}
    text = cli.call("flips", *runs, "--lost").stdout
    assert "case-000" in text
    assert "Question 0" in text
    assert "x0 x1" in text
    assert json.loads(cli.call("flips", *runs, "--gained", "--json").stdout) == []
    (one,) = json.loads(cli.call("flips", *runs, "--case", "case-001", "--json").stdout)
    assert (one["baseline_score"], one["candidate_score"]) == (0, 0)
    assert cli.call("flips", *runs, "--case", "nothing").returncode == 2
    assert cli.call("flips", runs[0], runs[0]).stdout == ""
