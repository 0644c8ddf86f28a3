"""One configuration for everything: hustings.toml, environment and command line, in that order of growing weight."""

from __future__ import annotations

import difflib
import os
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError

from deploy.errors import ConfigError
from feedback.addresses import without_password
from feedback.config import FeedbackConfig, Section
from feedback.paths import DataPaths
from serve.config import ServeConfig
from train.config import TrainConfig

DEFAULT_FILE = "hustings.toml"
ENVIRONMENT = {
    "HUSTINGS_DATA_DIR": "data_dir",
    "HUSTINGS_MODEL": "model",
    "HUSTINGS_KAFKA": "feedback.kafka",
    "HUSTINGS_KAFKA_PROTOCOL": "feedback.kafka_security.protocol",
    "HUSTINGS_KAFKA_SSL_CAFILE": "feedback.kafka_security.ssl_cafile",
    "HUSTINGS_KAFKA_SSL_CHECK_HOSTNAME": "feedback.kafka_security.ssl_check_hostname",
    "HUSTINGS_KAFKA_SSL_CERTFILE": "feedback.kafka_security.ssl_certfile",
    "HUSTINGS_KAFKA_SSL_KEYFILE": "feedback.kafka_security.ssl_keyfile",
    "HUSTINGS_KAFKA_SSL_KEY_PASSWORD_FILE": "feedback.kafka_security.ssl_key_password_file",
    "HUSTINGS_KAFKA_SASL_MECHANISM": "feedback.kafka_security.sasl_mechanism",
    "HUSTINGS_KAFKA_SASL_USERNAME": "feedback.kafka_security.sasl_username",
    "HUSTINGS_KAFKA_SASL_PASSWORD_FILE": "feedback.kafka_security.sasl_password_file",
    "HUSTINGS_LEDGER_URL": "feedback.ledger_url",
    # Not HUSTINGS_PORT: Kubernetes sets that itself (to an URL) beside a service named hustings.
    "HUSTINGS_SERVE_HOST": "serve.host",
    "HUSTINGS_SERVE_PORT": "serve.port",
}
"""Environment variables that set a key. Secrets are read where they are used: HUSTINGS_SECRET, HUSTINGS_OPERATOR_TOKEN,
HUSTINGS_ENGINE_KEY, HUSTINGS_KAFKA_SASL_PASSWORD, HUSTINGS_KAFKA_SSL_KEY_PASSWORD."""

_NEVER_EMPTY = frozenset(
    {"data_dir", "model", "serve.host", "feedback.curator_metrics_host", "train.schedule.metrics_host"}
)
"""Empty, these would be the working folder, no model, or every address of the machine."""
_LONGEST = {"_s": 315_360_000.0, "_h": 87_600.0, "_hours": 87_600.0}
"""Ten years, by how the key of a time ends."""


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/hustings`, by default ~/.local/share/hustings."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "hustings"


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/hustings`, by default ~/.cache/hustings."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "hustings"


class HustingsConfig(Section):
    """The whole of hustings.toml."""

    data_dir: Path = Field(default_factory=default_data_dir)
    """Folder of the ledger, the votes, the adapters and the logs."""
    model: str | None = None
    """Base model: a folder, or a hub id; none for SmolLM2-135M-Instruct, made on first use."""
    serve: ServeConfig = ServeConfig()
    """The chat API."""
    feedback: FeedbackConfig = FeedbackConfig()
    """The event log, the ledger and the dataset."""
    train: TrainConfig = TrainConfig()
    """The reward model, PPO and when a cycle starts."""

    @property
    def paths(self) -> DataPaths:
        """The layout of the data folder."""
        return DataPaths(self.data_dir)


def load(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    direct: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    running: Mapping[str, Any] | None = None,
) -> HustingsConfig:
    """The resolved configuration.

    Args:
        file: the file to read; by default $HUSTINGS_CONFIG, else hustings.toml in the working folder if any.
        overrides: `dotted.key=value`, the value in TOML's notation or plain text; `none` unsets what may be unset.
        direct: dotted keys from flags of their own; None values are left out.
        running: dotted keys of an `up` that a command has to agree with: more than file and variables, less than the
            command line.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), a wrong value, an unreadable file.
    """
    environment = os.environ if environment is None else environment
    origin: dict[str, str] = {}
    values: dict[str, Any] = {}
    chosen = _choose_file(file, environment)
    if chosen is not None:
        for key, value in _flatten(_read(chosen)):
            _put(values, origin, key, value, str(chosen))
    for variable, key in ENVIRONMENT.items():
        if environment.get(variable):
            _put(values, origin, key, environment[variable], variable)
    for key, value in (running or {}).items():
        _put(values, origin, key, value, "the `hustings up` that runs")
    for override in overrides:
        key, value = _parse_override(override)
        _put(values, origin, key, value, "--set")
    for key, value in (direct or {}).items():
        if value is not None:
            _put(values, origin, key, value, "the command line")
    try:
        config = HustingsConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin)) from error
    _require_bounded_times(config, origin)
    return _agreed(config.model_copy(update={"data_dir": config.data_dir.expanduser().absolute()}))


def _agreed(config: HustingsConfig) -> HustingsConfig:
    """What serving and the trainer have to agree on, where one of them was told nothing else.

    Raises:
        ConfigError: they were told what doesn't go together.
    """
    serve, train = config.serve, config.train
    if train.chat_template_kwargs is None:
        train = train.model_copy(update={"chat_template_kwargs": serve.chat_template_kwargs})
    if train.lora.rank > serve.max_lora_rank:
        if "max_lora_rank" in serve.model_fields_set:
            raise ConfigError(
                f"train.lora.rank is {train.lora.rank}, serve.max_lora_rank {serve.max_lora_rank}: serving would refuse"
                " every adapter; raise the second or lower the first"
            )
        serve = serve.model_copy(update={"max_lora_rank": train.lora.rank})
    return config.model_copy(update={"serve": serve, "train": train})


def keys() -> list[str]:
    """Every dotted key that may be set."""
    return [key for key, _ in _leaves(HustingsConfig)]


def to_toml(config: HustingsConfig, *, explain: bool = False) -> str:
    """The configuration as a file that gives it again; with `explain`, what each key means stands above it."""
    lines: list[str] = []
    _write_section(config, "", explain, lines)
    return "\n".join(lines).strip() + "\n"


def for_show(config: HustingsConfig) -> HustingsConfig:
    """The configuration as a terminal may see it: `***` for the password in an address, which `load` refuses.

    What the trainer tells the chat template because serving does is left out: a file made of it goes on following.
    """
    serve, feedback, train = config.serve, config.feedback, config.train
    url = feedback.ledger_url
    engines = tuple(without_password(each) for each in serve.engine_urls)
    template = None if train.chat_template_kwargs == serve.chat_template_kwargs else train.chat_template_kwargs
    shown = {
        "serve": serve.model_copy(update={"engine_urls": engines}),
        "feedback": feedback.model_copy(update={"ledger_url": None if url is None else without_password(url)}),
        "train": train.model_copy(update={"chat_template_kwargs": template}),
    }
    return config.model_copy(update=shown)


def _choose_file(file: Path | None, environment: Mapping[str, str]) -> Path | None:
    if file is None and environment.get("HUSTINGS_CONFIG"):
        file = Path(environment["HUSTINGS_CONFIG"])
    if file is not None:
        return file
    default = Path(DEFAULT_FILE)
    return default if default.is_file() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"configuration {file}: {error.strerror or error}; give another with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {file} is not valid TOML: {error}") from error


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    sections = {key for key, annotation in _nodes(HustingsConfig) if _section_of(annotation) is not None}
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and (key in sections or key not in set(keys())):
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"--set {override}: write it as --set key=value, for example --set serve.port=8001")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text


def _put(values: dict[str, Any], origin: dict[str, str], key: str, value: Any, source: str) -> None:
    _require_known(key, source)
    if isinstance(value, str):
        _require_visible(key, value, source)
    if value == "none" and type(None) in get_args(dict(_leaves(HustingsConfig))[key]):
        value = None
    origin[key] = source
    *sections, name = key.split(".")
    table = values
    for section in sections:
        table = table.setdefault(section, {})
    table[name] = value


def _require_visible(key: str, value: str, source: str) -> None:
    """Addresses and paths are copied from pages, with what can't be seen there; an empty one would mean anything."""
    hidden = next((character for character in value if not (character.isprintable() or character == "\t")), None)
    if hidden is not None:
        raise ConfigError(f"{key} (from {source}) holds the invisible character U+{ord(hidden):04X}; write it anew")
    if not value.strip() and key in _NEVER_EMPTY:
        raise ConfigError(f"{key} (from {source}) is empty; give a value, or leave the key out")


def _require_bounded_times(config: HustingsConfig, origin: Mapping[str, str]) -> None:
    """No clock can be set to infinity: timers and dates overflow, days after the start."""
    for key in keys():
        unit = next((unit for unit in _LONGEST if key.endswith(unit)), None)
        value = None if unit is None else attrgetter(key)(config)
        if unit is not None and isinstance(value, float) and value > _LONGEST[unit]:
            raise ConfigError(
                f"{key} (from {origin.get(key, 'the default')}): at most {_LONGEST[unit]:.0f}, which is ten years; "
                "take that where you mean never"
            )


def _require_known(key: str, source: str) -> None:
    known = keys()
    if key in known:
        return
    below = [name for name in known if name.startswith(f"{key}.")]
    if below:
        raise ConfigError(f"{key} (from {source}) is a section; set a key in it, for example {below[0]}")
    near = nearest(key, known)
    hint = f"did you mean {near}?" if near else "`hustings config` lists all keys"
    raise ConfigError(f"unknown configuration key {key} (from {source}); {hint}")


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key most like `key`: by its whole, else by its last part."""
    candidates = list(known)
    found = difflib.get_close_matches(key, candidates, n=1, cutoff=0.75)
    if found:
        return found[0]
    last = key.rsplit(".", 1)[-1]
    by_last = {name.rsplit(".", 1)[-1]: name for name in reversed(candidates)}
    similar = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.6)
    return by_last[similar[0]] if similar else None


def _explain(error: ValidationError, origin: Mapping[str, str]) -> str:
    fault = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in fault["loc"])
    source = next((where for name, where in origin.items() if key.startswith(name) or name.startswith(key)), "defaults")
    given = fault.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f", not {given!r}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"configuration {key or 'as a whole'} (from {source}): {message[:1].lower()}{message[1:]}{shown}"


def _section_of(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _nodes(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field.annotation
        section = _section_of(field.annotation)
        if section is not None:
            yield from _nodes(section, f"{prefix}{name}.")


def _leaves(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    return ((key, annotation) for key, annotation in _nodes(model) if _section_of(annotation) is None)


def _write_section(section: BaseModel, prefix: str, explain: bool, lines: list[str]) -> None:
    fields = type(section).model_fields
    nested = {name: getattr(section, name) for name in fields if isinstance(getattr(section, name), BaseModel)}
    if prefix:
        lines += ["", f"[{prefix}]"]
    for name, field in fields.items():
        if name in nested:
            continue
        value = getattr(section, name)
        if explain and field.description:
            lines.append(f"# {' '.join(field.description.split())}")
        if value is None and field.default is None:
            lines.append(f"# {name} is not set")
        else:
            lines.append(f"{name} = {_toml(value)}")
    for name, inner in nested.items():
        _write_section(inner, f"{prefix}.{name}" if prefix else name, explain, lines)


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'  # TOML knows no null; `load` reads this word as one where a key may be unset
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_quote(str(key))} = {_toml(item)}' for key, item in value.items())}}}"
    return _quote(str(value))


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'
