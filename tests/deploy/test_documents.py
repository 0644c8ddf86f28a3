"""What the documents name is there: links, settings and their defaults, commands, addresses, alerts, files."""

from __future__ import annotations

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
from serve.app import ROUTERS
from serve.config import ServeConfig
from serve.engines.vllm_settings import server_command, server_environment
from tests.deploy.test_operations import RULES, series

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
