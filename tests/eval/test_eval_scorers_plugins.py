"""Scorers that other packages bring, as an installed package shows them: a .dist-info folder on sys.path."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engines.fixtures import FakeEngine
from eval_support import Cli, write_suite

from eval import loaders
from eval.scorers import Answered, ScorerError, build, plugins, revision_of

FakeEngines = Callable[..., FakeEngine]
SCORER = """
from eval.scorers import Answered, Score, Scorer, Tools

class Length(Scorer, frozen=True):
    '''The share of `words` that the answer has.'''

    words: int = 10

    def score(self, answered: Answered, target: object, tools: Tools = Tools()) -> Score:
        return Score(min(1.0, len(answered.text.split()) / self.words), "counted")
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs a package: name, version, source, and what its entry point names."""

    def install(package: str, version: str = "1.2", source: str = SCORER, entry: str = "Length") -> None:
        module = package.replace("-", "_")
        folder = tmp_path / "site" / f"{package}-{version}"
        info = folder / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[modelyard.scorers]\nlength = {module}:{entry}\n")
        monkeypatch.syspath_prepend(folder)
        plugins.load.cache_clear()

    yield install
    plugins.load.cache_clear()


def test_an_installed_package_brings_a_scorer(installed: Callable[..., None]) -> None:
    with pytest.raises(ScorerError, match="unknown scorer 'length'"):
        build("length", {}, None)
    installed("tiny-scorer-a")
    found = build("length", {"words": 4}, None).score(Answered(text="two words"), None)
    assert (found.value, found.detail) == (0.5, "counted")
    assert revision_of("length") == "tiny-scorer-a==1.2"
    assert revision_of("exact") == ""
    with pytest.raises(ScorerError, match="did you mean 'words'"):
        build("length", {"word": 4}, None)
    with pytest.raises(ScorerError, match="did you mean 'length'"):
        build("lenght", {}, None)


def test_its_version_is_part_of_the_suites_digest(tmp_path: Path, installed: Callable[..., None]) -> None:
    folder = write_suite(tmp_path / "s", scorer="length")
    digests = []
    for version in ("1.0", "1.1"):
        installed("tiny-scorer-b", version)
        if digests:  # the upgrade replaces the version before it
            import shutil

            shutil.rmtree(tmp_path / "site" / "tiny-scorer-b-1.0")
        digests.append(loaders.load(str(folder), tmp_path / "cache").digest)
    assert digests[0] != digests[1]


def test_a_suite_is_scored_by_it(
    cli: Cli, tmp_path: Path, fake_engine: FakeEngines, installed: Callable[..., None]
) -> None:
    installed("tiny-scorer-c")
    engine = fake_engine("--events", "4")
    folder = write_suite(tmp_path / "s", cases=3, scorer={"name": "length", "words": 8})
    found = cli.call("run", str(folder), "--model", f"{engine.url}#m", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["overall"]["mean"] == 0.5


@pytest.mark.parametrize(
    ("package", "source", "entry", "message"),
    [
        (
            "tiny-broken",
            "import nothing_like_it",
            "Length",
            "cannot be loaded .ModuleNotFoundError.*repair or uninstall",
        ),
        ("tiny-missing", SCORER, "Size", "cannot be loaded .AttributeError"),
        ("tiny-other", "Length = dict", "Length", "must name a subclass of eval.scorers.Scorer"),
    ],
)
def test_what_is_no_scorer_is_refused_in_one_sentence(
    installed: Callable[..., None], package: str, source: str, entry: str, message: str
) -> None:
    installed(package, source=source, entry=entry)
    with pytest.raises(ScorerError, match=message) as told:
        build("length", {}, None)
    assert f"{package}==1.2" in str(told.value)
    assert "\n" not in str(told.value)


def test_two_packages_with_one_name_are_refused(installed: Callable[..., None]) -> None:
    installed("tiny-one")
    installed("tiny-two")
    with pytest.raises(ScorerError, match="uninstall all but one"):
        build("length", {}, None)
