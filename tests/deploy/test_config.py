"""The configuration file, the environment and the overrides."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.config import ENVIRONMENT, HustingsConfig, for_show, keys, load, nearest, to_toml
from deploy.errors import ConfigError

NOTHING: dict[str, str] = {}


@pytest.fixture(autouse=True)
def _no_file_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(folder: Path, text: str) -> Path:
    file = folder / "given.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults_need_no_file() -> None:
    config = load(environment=NOTHING)
    assert config.serve.port == 8000
    assert config.model is None
    assert config.data_dir.is_absolute()


def test_data_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load(environment=NOTHING).data_dir == tmp_path / "hustings"


def test_each_layer_outweighs_the_one_before(tmp_path: Path) -> None:
    file = write(tmp_path, "[serve]\nport = 1\nhost = '127.0.0.2'\ndefault_max_tokens = 5\n")
    environment = {"HUSTINGS_SERVE_PORT": "2", "HUSTINGS_SERVE_HOST": "127.0.0.3"}
    config = load(file, ["serve.port=3", "serve.threads=1"], {"serve.port": 4, "model": None}, environment)
    assert config.serve.port == 4
    assert config.serve.host == "127.0.0.3"
    assert config.serve.default_max_tokens == 5
    assert config.serve.threads == 1
    assert load(file, ["serve.port=3"], None, environment).serve.port == 3
    assert load(file, (), None, environment).serve.port == 2
    assert load(file, (), None, NOTHING).serve.port == 1


def test_the_file_in_the_working_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "hustings.toml").write_text("[serve]\nport = 77\n", encoding="utf-8")
    assert load(environment=NOTHING).serve.port == 77


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("serve.port=8001", 8001),
        ("serve.port = 8001", 8001),
        ("model=some/folder", "some/folder"),
        ('model="x y"', "x y"),
    ],
)
def test_overrides_are_toml_or_plain_text(text: str, value: object) -> None:
    config = load(overrides=[text], environment=NOTHING)
    assert value in (config.serve.port, config.model)


def test_none_unsets_what_may_be_unset_and_nothing_else() -> None:
    assert load(overrides=["train.ppo.value_clip=none"], environment=NOTHING).train.ppo.value_clip is None
    with pytest.raises(ConfigError, match=r"serve\.port"):
        load(overrides=["serve.port=none"], environment=NOTHING)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("serve.prt", "serve.port"),
        ("serv.port", "serve.port"),
        ("port", "serve.port"),
        ("train.ppo.iteration", "train.ppo.iterations"),
        ("feedback.kafca", "feedback.kafka"),
    ],
)
def test_an_unknown_key_fails_and_names_the_nearest(key: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(overrides=[f"{key}=1"], environment=NOTHING)
    assert f"did you mean {meant}?" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_the_file_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[serve]\nprt = 1\n")
    with pytest.raises(ConfigError, match=r"serve\.prt .*given\.toml.*serve\.port"):
        load(file, environment=NOTHING)


def test_an_unknown_section_in_the_file_fails(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"servee\.port"):
        load(write(tmp_path, "[servee]\nport = 1\n"), environment=NOTHING)


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("serve.port=99999", "65535"),
        ("serve.port=x", "integer"),
        ("serve=1", "is a section"),
        ("serve.port", "key=value"),
        ("train.ppo.episodes=0", "train.ppo.episodes"),
    ],
)
def test_a_wrong_value_is_explained_in_one_line(override: str, fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(overrides=[override], environment=NOTHING)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.schedule.max_hours", "inf"),
        ("train.schedule.max_hours", "1e9"),
        ("serve.releases.canary.patience_h", "inf"),
        ("serve.shutdown_grace_s", "inf"),
        ("serve.stalled_client_s", "Infinity"),
        ("feedback.receipt_timeout_s", "1e308"),
    ],
)
def test_no_time_is_endless(key: str, value: str) -> None:
    """Dates and timers overflow, in the trainer once there are votes, in serving with the first candidate."""
    with pytest.raises(ConfigError, match=rf"{key} \(from --set\): at most .* where you mean never"):
        load(overrides=[f"{key}={value}"], environment={})


def test_ten_years_are_taken() -> None:
    config = load(overrides=["train.schedule.max_hours=87600", "serve.releases.canary.patience_h=87600"])
    now = datetime.now(UTC)
    assert now + timedelta(hours=config.serve.releases.canary.patience_h) > now


def test_a_bound_on_something_else_may_be_endless() -> None:
    assert load(overrides=["train.governor.max_kl=inf"]).train.governor.max_kl == math.inf


@pytest.mark.parametrize("key", ["data_dir", "model", "serve.host", "feedback.curator_metrics_host"])
def test_an_empty_value_is_no_choice(key: str) -> None:
    """An empty host would be every address of the machine, an empty data folder the one worked in."""
    with pytest.raises(ConfigError, match=f"{key} .* is empty; give a value, or leave the key out"):
        load(overrides=[f"{key}=''"], environment={})


@pytest.mark.parametrize(
    ("value", "named"), [("kafka\u200b:9092", "200B"), ("kafka:9092\u00a0", "00A0"), ("k\x00", "0000")]
)
def test_what_cannot_be_seen_is_named(value: str, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"feedback.kafka \(from HUSTINGS_KAFKA\) .* U\+{named}"):
        load(environment={"HUSTINGS_KAFKA": value})


def test_the_trainer_tells_the_chat_template_what_serving_tells_it() -> None:
    told = 'serve.chat_template_kwargs={ enable_thinking = false, language = "en" }'
    config = load(overrides=[told], environment=NOTHING)
    assert config.serve.chat_template_kwargs == {"enable_thinking": False, "language": "en"}
    assert config.train.chat_template_kwargs == config.serve.chat_template_kwargs
    apart = load(overrides=[told, "train.chat_template_kwargs={}"], environment=NOTHING)
    assert apart.train.chat_template_kwargs == {}
    with pytest.raises(ConfigError, match="add_generation_prompt is given by Hustings itself"):
        load(overrides=["serve.chat_template_kwargs={ add_generation_prompt = false }"], environment=NOTHING)


def test_serving_takes_adapters_of_the_rank_that_is_trained() -> None:
    assert load(environment=NOTHING).serve.max_lora_rank == 16
    assert load(overrides=["train.lora.rank=32"], environment=NOTHING).serve.max_lora_rank == 32
    assert (
        load(overrides=["train.lora.rank=8", "serve.max_lora_rank=64"], environment=NOTHING).serve.max_lora_rank == 64
    )
    with pytest.raises(ConfigError, match=r"train\.lora\.rank is 32, serve\.max_lora_rank 16"):
        load(overrides=["train.lora.rank=32", "serve.max_lora_rank=16"], environment=NOTHING)


def test_a_file_that_windows_saved_is_read(tmp_path: Path) -> None:
    assert load(write(tmp_path, "\ufeffmodel = 'x'\r\n"), environment=NOTHING).model == "x"


@pytest.mark.parametrize("text", ["serve = [", "\x00"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"given\.toml"):
        load(write(tmp_path, text), environment=NOTHING)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml.*--config"):
        load(tmp_path / "nowhere.toml", environment=NOTHING)


@pytest.mark.parametrize("explain", [False, True])
def test_what_is_printed_gives_the_same_configuration_again(tmp_path: Path, explain: bool) -> None:
    awkward = 'a "quoted" \\ name\twith a tab'
    config = load(overrides=["train.ppo.value_clip=none"], direct={"model": awkward}, environment=NOTHING)
    assert load(write(tmp_path, to_toml(config, explain=explain)), environment=NOTHING) == config


def test_a_shown_configuration_has_no_password_and_is_not_taken_for_the_whole_one(tmp_path: Path) -> None:
    told = load(overrides=["feedback.ledger_url=postgresql://ann:hunter2@db/h"], environment=NOTHING)
    shown = to_toml(for_show(told), explain=True)
    assert "hunter2" not in shown
    assert 'ledger_url = "postgresql://ann:***@db/h"' in shown
    file = write(tmp_path, shown)
    with pytest.raises(ConfigError, match=r"feedback\.ledger_url \(from .*\): its password was hidden.*PGPASSFILE"):
        load(file, environment=NOTHING)
    whole = {"HUSTINGS_LEDGER_URL": "postgresql://ann:hunter2@db/h"}
    assert load(file, environment=whole).feedback == told.feedback


def test_a_shown_configuration_has_no_password_of_an_engine_either(tmp_path: Path) -> None:
    told = load(
        overrides=['serve.engine_urls=["http://ann:hunter2@gpu-1:8001", "http://gpu-2:8001"]'], environment=NOTHING
    )
    shown = to_toml(for_show(told))
    assert 'engine_urls = ["http://ann:***@gpu-1:8001", "http://gpu-2:8001"]' in shown
    with pytest.raises(ConfigError, match=r"serve\.engine_urls .*a password was hidden"):
        load(write(tmp_path, shown), environment=NOTHING)


def test_a_trainer_that_follows_serving_still_does_in_a_file_made_of_what_was_shown(tmp_path: Path) -> None:
    file = write(tmp_path, to_toml(for_show(load(environment=NOTHING))))
    changed = load(file, ["serve.chat_template_kwargs={ enable_thinking = false }"], environment=NOTHING)
    assert changed.train.chat_template_kwargs == {"enable_thinking": False}


def test_every_key_is_explained() -> None:
    text = to_toml(HustingsConfig(), explain=True)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        named = line.removeprefix("# ") if line.endswith("is not set") else line
        if (line and not line.startswith(("[", "#"))) or named != line:
            assert lines[number - 1].startswith("# "), f"no explanation above: {line}"


def test_variables_of_the_environment_name_real_keys() -> None:
    assert set(ENVIRONMENT.values()) <= set(keys())


def test_nearest_says_nothing_when_nothing_is_near() -> None:
    assert nearest("zzzzzz", ["serve.port"]) is None
