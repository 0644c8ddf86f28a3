"""Configuration of the event log, the ledger and the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from feedback.addresses import is_hidden
from feedback.privacy.config import PrivacyConfig


class Section(BaseModel):
    """Base of every configuration section: frozen, unknown keys fail."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


TemplateValue = bool | int | float | str
OURS = frozenset(
    {
        *("conversation", "messages", "tools", "documents", "chat_template", "tokenizer_kwargs", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
    }
)
"""Arguments of a chat template's application that serving and the trainer give themselves."""


def _free_for_templates(given: dict[str, TemplateValue] | None) -> dict[str, TemplateValue] | None:
    if taken := sorted(OURS & set(given or ())):
        raise ValueError(f"{taken[0]} is given by Hustings itself; leave it out")
    return given


ChatTemplateKwargs = Annotated[dict[str, TemplateValue], AfterValidator(_free_for_templates)]
"""What a model's chat template is told besides the messages."""


def _with_its_password(url: str) -> str:
    if is_hidden(url):
        raise ValueError("its password was hidden when it was shown; write the password, or leave it to PGPASSFILE")
    return url


LedgerUrl = Annotated[str, AfterValidator(_with_its_password)]
"""SQLAlchemy URL of a ledger."""


class VotersConfig(Section):
    """`[feedback.voters]`: how far a voter's votes count (docs/voting.md)."""

    weigh: bool = True
    """Weigh votes by what is known of their voters; False gives every vote the weight 1."""
    max_share: float = Field(default=0.05, gt=0, le=1)
    """Largest share of the total weight that one voter may have; twice an equal share where that is more."""
    cap_from_voters: int = Field(default=10, ge=2)
    """The cap on shares begins with so many voters; fewer know each other."""
    repeats: int = Field(default=3, ge=1)
    """Votes of one voter on one and the same prompt that count whole; more share that much weight."""
    hasty_ms: int = Field(default=1_500, ge=0)
    """A vote so soon after its answers were complete (by the server's clock) is hasty."""
    burst_ms: int = Field(default=3_000, ge=0)
    """A vote so soon after the same voter's vote before is hasty too."""
    suspicion: float = Field(default=0.1, gt=0, lt=1)
    """Share of unreliable voters that is assumed before any vote is seen."""
    taste_spread: float = Field(default=32.0, gt=1, allow_inf_nan=False)
    """How alike honest voters are: their rates of preferring one adapter spread as after so many votes (32: standard
    deviation 0.09 around a half). Smaller forgives strong tastes, and promoters with them."""


GivenFile = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""A file by its whole path: other processes, in other folders, read it too."""
WITH_TLS = frozenset({"SSL", "SASL_SSL"})
WITH_LOGIN = frozenset({"SASL_PLAINTEXT", "SASL_SSL"})


class KafkaSecurity(Section):
    """`[feedback.kafka_security]`: TLS and login of the Kafka that `feedback.kafka` names (docs/deployment.md).

    Passwords are no settings, but variables or files: so they stand in no configuration, command line or message.
    """

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Kafka's `security.protocol`: SSL for TLS, SASL_SSL for TLS and a login; SASL_PLAINTEXT encrypts nothing."""
    ssl_cafile: GivenFile | None = None
    """PEM file of the authorities that sign the brokers' certificates; None for those that this system trusts."""
    ssl_check_hostname: bool = True
    """Refuse a broker whose certificate is for another name than the one it was asked by."""
    ssl_certfile: GivenFile | None = None
    """PEM file of our own certificate and what leads to its authority, where the brokers ask for one."""
    ssl_keyfile: GivenFile | None = None
    """PEM file of its private key; None where that stands in `ssl_certfile`."""
    ssl_key_password_file: GivenFile | None = None
    """File with the private key's password, where it has one and HUSTINGS_KAFKA_SSL_KEY_PASSWORD doesn't give it."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """How the brokers want the login: PLAIN shows them the password, SCRAM proves it."""
    sasl_username: str | None = Field(default=None, min_length=1)
    """User of the login."""
    sasl_password_file: GivenFile | None = None
    """File with its password, where HUSTINGS_KAFKA_SASL_PASSWORD doesn't give it."""

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.protocol in WITH_TLS

    @property
    def login(self) -> bool:
        """Whether there is a user and a password."""
        return self.protocol in WITH_LOGIN

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if not self.tls and (
            idle := sorted(name for name in given if name.startswith("ssl_") and name.endswith("file"))
        ):
            raise ValueError(f"{idle[0]} says nothing without TLS; set protocol to SSL or SASL_SSL")
        if not self.login and (idle := sorted(name for name in given if name.startswith("sasl_"))):
            raise ValueError(f"{idle[0]} says nothing without a login; set protocol to SASL_SSL")
        if self.login and self.sasl_mechanism is None:
            raise ValueError(f"{self.protocol} needs sasl_mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
        if self.login and self.sasl_username is None:
            raise ValueError(f"{self.protocol} needs sasl_username")
        if self.ssl_certfile is None and (idle := sorted(given & {"ssl_keyfile", "ssl_key_password_file"})):
            raise ValueError(f"{idle[0]} says nothing without ssl_certfile; give the certificate too")
        return self


class FeedbackConfig(Section):
    """`[feedback]` of hustings.toml."""

    kafka: str | None = None
    """`host:port[,host:port]` of a Kafka; None for the embedded broker (volatile: the ledger is the record)."""
    kafka_security: KafkaSecurity = KafkaSecurity()
    """TLS and login of that Kafka."""
    broker_port: int = Field(default=0, ge=0, le=65535)
    """Port of the embedded broker on 127.0.0.1; 0 picks a free one."""
    partitions: int = Field(default=3, ge=1)
    """Partitions of a topic that has to be made."""
    replication: int = Field(default=-1, ge=-1)
    """Replication factor of a topic that has to be made; -1 leaves it to the broker."""
    ledger_url: LedgerUrl | None = None
    """SQLAlchemy URL; None for SQLite in the data folder. Its password is best left out and kept in the file that
    PGPASSFILE names."""
    relay_batch: int = Field(default=1_000, ge=1)
    """Outbox rows sent at once, where they have no more than 8 MiB together."""
    relay_idle_s: float = Field(default=1.0, gt=0)
    """Seconds between looks for the curator's receipts, and for rows of other processes; what serving records
    itself goes at once."""
    relay_apart: bool = True
    """Keep the relay's Kafka client in a process beside serving: more memory, and more votes (docs/speed.md)."""
    receipt_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds after which a sent row without the curator's receipt is sent again; doubles up to an hour."""
    curate_batch: int = Field(default=500, ge=1)
    """Records per part file at most."""
    curate_linger_s: float = Field(default=1.0, ge=0)
    """Seconds that the curator waits for a fuller batch."""
    curator_metrics_port: int = Field(default=9101, ge=0, le=65535)
    """Port of the curator's /metrics; 0 for none."""
    curator_metrics_host: str = "127.0.0.1"
    """Address of the curator's /metrics: in a container, where Prometheus asks from another, 0.0.0.0."""
    erase: bool = True
    """When a voter is forgotten, delete from the topics of pairs, votes, thumbs and dead letters what the curators have
    read: the voter's records, and everybody's before them. False leaves them to the topics' retention."""
    broker_holds_mb: int = Field(default=256, ge=1)
    """What the curator reads before it has the embedded broker, which holds all in its memory, drop what is stored."""
    voters: VotersConfig = VotersConfig()
    """How far a voter's votes count."""
    privacy: PrivacyConfig = PrivacyConfig()
    """What becomes of personal data before a pair or a vote is stored."""
