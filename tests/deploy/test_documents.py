"""What the documents name is there: links, settings and their defaults, commands, addresses, alerts, files."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from benchmarks.__main__ import commands
from deploy.cli import app
from deploy.config import ENVIRONMENT, HustingsConfig, keys, load
from feedback.erasing import IN_FLIGHT_S
from feedback.kafka_log.consumer import STUCK_JOIN_S
from feedback.ledger.outbox import BATCH_BYTES
from feedback.paths import DataPaths
from serve import door, kept
from serve.app import ROUTERS
from serve.config import ServeConfig
from serve.engines.vllm_settings import server_command, server_environment
from serve.main import LEDGER_PATIENCE_S
from serve.releases import election, guards, manager, referee, sequential
from tests.deploy.test_operations import RULES, series
from train.reward import chance, judge, refresh

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "README.md", ROOT / "serve/web/README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES.remove(ROOT / "docs" / "log.md")  # what was so then; only its links are looked at
RECORDS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
ALL = [*GUIDES, ROOT / "docs" / "log.md", ROOT / "CHANGELOG.md", ROOT / "docs" / "adr" / "README.md", *RECORDS]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
SETTING = re.compile(r"(?<![\w./])(?:serve|feedback|train)(?:\.[a-z_]+)+")
METHODS = "GET|POST|PUT|DELETE"

guides = pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))


def prose(document: Path) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def code(document: Path) -> list[str]:
    """What stands in backquotes, and every line of the fenced blocks; a line that goes on is one with the next."""
    text = document.read_text(encoding="utf-8")
    blocks = [block.replace("\\\n", " ") for _, block in FENCE.findall(text)]
    return INLINE.findall(prose(document)) + [line.strip() for block in blocks for line in block.splitlines()]


def anchors(document: Path) -> set[str]:
    """Headings as GitHub names them."""
    heads = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).lower() for head in heads)
    return {re.sub(r"[^\w\- ]", "", head).strip().replace(" ", "-") for head in plain}


@pytest.mark.parametrize("document", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", INLINE.sub("", prose(document))):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_every_decision_record_is_listed_once_and_in_order() -> None:
    listed = re.findall(r"^- \[(\d{4}): (.+)\]\((.+)\)$", (ROOT / "docs/adr/README.md").read_text(), re.MULTILINE)
    heads = [record.read_text(encoding="utf-8").splitlines()[0] for record in RECORDS]
    assert [file for *_, file in listed] == [record.name for record in RECORDS]
    assert [f"# {number}: {title}" for number, title, _ in listed] == heads
    assert [number for number, *_ in listed] == [record.name[:4] for record in RECORDS]


@pytest.mark.parametrize("document", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_decision_records_that_are_named_exist(document: Path) -> None:
    there = {record.name[:4] for record in RECORDS}
    told = re.findall(r"(?:adr/|decision records? \[?)(\d{4})\b(?:((?:, | and | to )\d{4})*)", prose(document))
    assert {number for found in told for number in re.findall(r"\d{4}", "".join(found))} <= there


def test_the_readme_names_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [guide.name for guide in GUIDES[2:] if f"](docs/{guide.name})" not in readme] == []


@guides
def test_settings_exist(guide: Path) -> None:
    known = set(keys())
    sections = {key.rsplit(".", n)[0] for key in known for n in range(1, key.count(".") + 1)}
    for name in {name for text in code(guide) for name in SETTING.findall(text)} - known - sections:
        module = name.replace(".", "/")
        assert list(ROOT.glob(f"{module}*.py")) + list(ROOT.glob(f"{module}/__init__.py")), name


def default(key: str) -> Any:
    value: Any = HustingsConfig()
    for part in key.split("."):
        value = getattr(value, part)
    return value


@guides
def test_defaults_are_the_settings_own(guide: Path) -> None:
    """`train.schedule.keep_snapshots` (10), or by its last words: `canary.weigh_every_h` (6)."""
    for name, told in re.findall(r"(?<!/)`([a-z_]+(?:\.[a-z_]+)*)` \(([0-9][0-9.,]*)\)", prose(guide)):
        meant = [key for key in keys() if f".{key}".endswith(f".{name}")]
        if meant:
            assert float(told.replace(",", "")) in {default(key) for key in meant}, name


def rows(document: str, head: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8").split(f"\n## {head}\n")[1].split("\n## ")[0]
    table = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table[1:]]


def test_limits_of_the_guards_are_the_settings_own() -> None:
    told = [re.match(r"`(\w+)` ([\d.]+)", cells[2]) for cells in rows("releases.md", "Guards")]
    assert {found[1]: float(found[2]) for found in told if found} == {
        key.rpartition(".")[2]: default(key) for key in keys() if key.startswith("serve.releases.guards.")
    }


def test_defaults_of_the_defences_are_the_settings_own() -> None:
    told = {name: cells[-1] for cells in rows("voting.md", "The defences") for name in SETTING.findall(cells[1])}
    serve, voters = ServeConfig(), HustingsConfig().feedback.voters
    ratings = serve.ratings
    assert (
        told["serve.ratings.votes_per_minute"]
        == f"{ratings.votes_per_minute:.0f} a minute, {ratings.vote_burst} at once"
    )
    assert told["serve.ratings.reviews_per_minute"] == f"{ratings.reviews_per_minute:.0f} a minute"
    assert (told["feedback.voters"], voters.weigh) == ("on (`weigh`)", True)
    assert (told["serve.contenders.gold_share"][:4], serve.contenders.gold_share) == ("off;", 0)


@pytest.mark.parametrize(
    ("guide", "told"),
    [
        ("architecture.md", f"looks through the adapters' folder every {manager.SCAN_S:.0f} s"),
        ("architecture.md", f"A head has {door.HEAD_S:.0f} s and {door.HEAD_BYTES >> 10} KiB"),
        ("architecture.md", f"gives a member no partitions for {STUCK_JOIN_S:.0f} s"),
        (
            "metrics.md",
            f"takes more than {kept.QUICK_S:g} s, {'twenty' if kept.REST == 20 else kept.REST} times as long",
        ),
        ("voting.md", f"votes within {default('feedback.voters.hasty_ms') / 1000:g} s of the complete answers"),
        ("voting.md", f"or {default('feedback.voters.burst_ms') / 1000:g} s of one's vote before"),
        ("voting.md", f"no voter has more than {default('feedback.voters.max_share'):.0%} of all weight"),
        ("voting.md", f"before any vote ({1 - default('feedback.voters.suspicion'):g})"),
        ("releases.md", f"become more than {election.VOTES_A_SECOND * default('serve.releases.canary.look_s'):,.0f} "),
        ("releases.md", f"40,000 every {40_000 / election.VOTES_A_SECOND:.0f} s"),
        ("releases.md", f"reaches 1/`alpha` ({1 / default('serve.releases.canary.alpha'):.0f})"),
        ("releases.md", f"with at least `min_votes` ({default('serve.releases.canary.min_votes')}) votes"),
        ("releases.md", f"a candidate that keeps its limit is at most {guards.ALPHA:.0%}"),
        ("releases.md", f"is within {referee.BASELINE_RISE:g} of that"),
        ("releases.md", f"spread over {'eight' if len(sequential.BETS) == 8 else len(sequential.BETS)} shares of bet"),
        ("reward-model.md", f"are turned at random {chance.DRAWS} times"),
        ("reward-model.md", f"a fit to more than {refresh.TURNED_ROWS} comparisons"),
        ("reward-model.md", f"an accuracy beyond {judge.COIN_Z:.2f}"),
        ("speed.md", f"a batch ({default('feedback.relay_batch'):,} rows, or {BATCH_BYTES >> 20} MiB)"),
        ("durability.md", f"waits {'a minute' if LEDGER_PATIENCE_S == 60 else LEDGER_PATIENCE_S} for it"),
        ("data.md", f"{'A minute' if IN_FLIGHT_S == 60 else IN_FLIGHT_S} later, when the curators have read that far"),
    ],
)
def test_figures_that_follow_from_the_code_are_its_own(guide: str, told: str) -> None:
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    assert told in " ".join(text.split())


def test_the_layout_of_the_data_folder_is_told() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Data folder")[1]
    paths = DataPaths(Path("DIR"))
    places = [getattr(paths, name) for name, each in vars(DataPaths).items() if isinstance(each, property)]
    folders = [str(place) for place in places if isinstance(place, Path)]
    assert len(folders) == len(places) - 1, "all but the ledger, which is an URL"
    assert [folder for folder in folders if folder not in tree] == []
    assert paths.ledger_url.removeprefix("sqlite:///") in tree


@cache
def defined() -> dict[str, set[str]]:
    """What modules of ours define, by the module's last name: functions, classes, methods, constants."""
    found: dict[str, set[str]] = {}
    for file in (
        ROOT / name for name in files() if name.endswith(".py") and not name.startswith(("tests", "benchmarks"))
    ):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.setdefault(file.stem, set()).add(node.name)
    return found


@pytest.mark.parametrize("guide", ["ppo.md", "reward-model.md"])
def test_functions_and_classes_that_are_named_exist(guide: str) -> None:
    """`maths.KlController`, `ppo.PpoTrainer._steer`, `heads.score_tokens(loss=...)`."""
    named = [
        found[1].split(".")
        for text in code(ROOT / "docs" / guide)
        for found in [re.fullmatch(r"((?:reward\.)?[a-z_]+(?:\.\w+)+)(?:\(.*\))?", text)]
        if found and not any(f".{key}".endswith(f".{found[1]}") for key in keys())
    ]
    named = [parts[1:] if parts[0] == "reward" and len(parts) > 2 else parts for parts in named]
    told = [parts for parts in named if parts[0] in defined() and parts[-1] not in {"py", "jsonl"}]
    assert len(told) > (20 if guide == "ppo.md" else 0)
    assert [parts for parts in told if not set(parts[1:]) <= defined()[parts[0]]] == []


@guides
def test_configuration_shown_can_be_loaded(guide: Path, tmp_path: Path) -> None:
    for language, text in FENCE.findall(guide.read_text(encoding="utf-8")):
        if language == "toml":
            file = tmp_path / "hustings.toml"
            file.write_text(text, encoding="utf-8")
            load(file, environment={})


def calls(guide: Path, program: str) -> Iterator[list[str]]:
    """The arguments of every call of a program."""
    for line in code(guide):
        found = re.match(rf"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?{re.escape(program)} (.+)", line)
        if found:
            yield shlex.split(found[1].replace("…", "x"), comments=True)


@guides
def test_verbs_and_their_flags_exist(guide: Path) -> None:
    for words in calls(guide, "hustings"):
        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not getattr(command, "commands", None) or not words or words[0].startswith("-"), words
        flags = {flag for parameter in command.params for flag in parameter.opts} | {"--help"}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= flags, (command.name, words)
        settings = [after.split("=")[0] for word, after in pairwise(words) if word == "--set"]
        assert set(settings) <= set(keys()), settings


@guides
def test_targets_and_benchmarks_exist(guide: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target, *more in calls(guide, "make"):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
        if target == "bench" and more:
            assert set(more[0].removeprefix("ARGS=").split()) <= set(commands("MODEL")), more
    for line in code(guide):
        for module, rest in re.findall(r"python -m (benchmarks[\w.]*)(.*)", line):
            place = ROOT / module.replace(".", "/")
            files = [*place.glob("*.py")] if place.is_dir() else [place.with_suffix(".py")]
            source = "".join(file.read_text(encoding="utf-8") for file in files)
            assert [flag for flag in re.findall(r"--[a-z-]+", rest) if flag != "--help" and flag not in source] == []


FOLDERS = ("docs", "deploy", "serve", "train", "feedback", "tests", "benchmarks", ".ci")


@cache
def files() -> tuple[str, ...]:
    """Of the repository."""
    found = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if "__pycache__" not in file.parts]
    return tuple(str(file.relative_to(ROOT)) for file in [*found, *ROOT.iterdir()] if file.is_file())


@cache
def variables() -> frozenset[bytes]:
    """What sources, scripts and deployment files know of the environment."""
    sources = [ROOT / file for file in files() if not file.endswith((".md", ".png", ".woff2", ".parquet"))]
    return frozenset(name for file in sources for name in re.findall(rb"HUSTINGS_[A-Z_]+", file.read_bytes()))


@guides
def test_files_of_the_repository_exist(guide: Path) -> None:
    folders = "|".join(map(re.escape, FOLDERS))
    for text in code(guide):
        for name in re.findall(rf"(?<![\w./>-])(?:(?:{folders})/[\w./-]+|test_\w+)\.(?:py|md|ya?ml|sh|json)\b", text):
            of_the_data_folder = name.startswith("train/") and not name.endswith(".py")
            assert of_the_data_folder or any(f"/{file}".endswith(f"/{name}") for file in files()), name


@guides
def test_variables_exist(guide: Path) -> None:
    assert set(re.findall(rb"HUSTINGS_[A-Z_]+", guide.read_bytes())) <= variables()


def test_the_readme_names_every_variable_that_sets_a_key() -> None:
    assert [name for name in ENVIRONMENT if f"`{name}`" not in (ROOT / "README.md").read_text(encoding="utf-8")] == []


@guides
def test_addresses_exist(guide: Path) -> None:
    """`POST /v1/releases/{name}/promote|reject`: each with this method."""
    routes: Any = [route for router in ROUTERS for route in router.routes]
    there = {(method, re.sub(r"\{\w+\}", "*", route.path)) for route in routes for method in route.methods}
    for method, path in re.findall(rf"\b({METHODS}) (/?v1/[\w/{{}}|-]+|/[\w.]+)", "\n".join(code(guide))):
        stem, _, last = path.rpartition("/")
        for end in last.split("|"):
            wanted = re.sub(r"\{\w+\}|\b[A-Z]+\b", "*", f"/{stem.strip('/')}/{end}").replace("//", "/")
            assert (method, wanted) in there or (method, path) == ("GET", "/web"), (method, path)


@guides
def test_metrics_and_alerts_that_are_named_exist(guide: Path) -> None:
    text = guide.read_text(encoding="utf-8")
    known = {name.removesuffix("_total") for name in series().values()}
    for name, more in re.findall(r"\b(hustings_[a-z_]+?)(_?(?:\.\.\.|…)|\b)", text):
        if name not in {"hustings_voter"}:  # the cookie
            fits = {each for each in known if each == name.removesuffix("_total") or (more and each.startswith(name))}
            assert fits, name
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    assert set(re.findall(r"\bHustings[A-Z]\w+", text)) <= alerts


def test_every_alert_is_explained() -> None:
    alerts = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Hustings\w+)` \|", text, re.MULTILINE) == alerts


def test_the_command_of_a_vllm_server_is_what_serving_needs() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8").replace("\\\n", " ")
    told = next(line.split() for line in text.splitlines() if "vllm.entrypoints" in line)
    variables, flags = [word for word in told if re.match(r"[A-Z_]+=", word)], " ".join(told).split(" --")[1:]
    wanted = " ".join(server_command(ServeConfig(), "MODEL", 8001, cpu=False)).split(" --")[1:]
    ours = {"host 127.0.0.1", "gpu-memory-utilization 0.9", "disable-uvicorn-access-log", "dtype auto"}
    assert {flag.strip() for flag in flags} - {"host 0.0.0.0"} == set(wanted) - ours
    assert (
        dict(word.split("=") for word in variables).items()
        <= server_environment(ServeConfig(), "MODEL", {}, cpu=False).items()
    )
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in variables
