"""What all contracts share: frozen, closed to unknown keys, versioned, and bounded in what a field may hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

# Bounds of what a record may hold: far above what serving lets in, and low enough that no record of a stranger can
# stop a table that is built of it, or fill the memory.
Name = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(max_length=1_000_000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
LogProb = Annotated[float, Field(allow_inf_nan=False)]
TokenIds = Annotated[tuple[TokenId, ...], Field(max_length=1_000_000)]
LogProbs = Annotated[tuple[LogProb, ...], Field(max_length=1_000_000)]
Moment = Annotated[AwareDatetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(3000, 1, 1, tzinfo=UTC))]
"""A time with its zone; one at the ends of the calendar can't be told in another zone."""


class ContractError(ValueError):
    """A record does not keep its contract; the message says which part."""


class UnknownSchemaVersion(ContractError):
    """A record was written by a newer Hustings than this one."""


def utc_now() -> datetime:
    """The time now, with its zone."""
    return datetime.now(UTC)


class Contract(BaseModel):
    """Base of all contracts: frozen, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read the JSON of one.

        Raises:
            UnknownSchemaVersion: it is of a version that this code does not know.
            ContractError: it is not valid; the message lists the first faults.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False)
            if any(fault["loc"][-1:] == ("schema_version",) for fault in faults):
                raise UnknownSchemaVersion(
                    f"{cls.__name__}: this schema_version isn't known here; upgrade the reader before the writer"
                ) from error
            listed = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'record'}: {f['msg']}" for f in faults[:3])
            raise ContractError(f"{cls.__name__}: {listed}") from error


class Event(Contract):
    """Base of what is written to a topic."""

    schema_version: Literal[1] = 1

    def to_bytes(self) -> bytes:
        """The record's value on the wire: compact UTF-8 JSON, nulls too (a field may be required and yet null)."""
        return self.model_dump_json().encode()
