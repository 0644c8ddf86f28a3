"""Answers that give away who they are: a vote on such a pair wasn't blind."""

from __future__ import annotations

import re
from functools import lru_cache

FAMILIES = (
    "Alpaca", "Anthropic", "ChatGPT", "Claude", "Cohere", "DeepSeek", "Falcon", "Gemini", "Gemma", "GPT", "Granite",
    "Grok", "Hugging Face", "HuggingFace", "Llama", "Meta AI", "Mistral", "Mixtral", "Nemotron", "OLMo", "OpenAI",
    "Phi", "Qwen", "SmolLM", "Vicuna",
)  # fmt: skip
"""Names by which models call themselves or their makers, right or wrong."""

_CLAIM = (
    r"(?i:\bI am|\bI['’]m|\bmy name is|\bthis is|\byou(?:['’]re| are) (?:talking|chatting|speaking) (?:to|with)"
    r"|\b(?:made|built|created|developed|trained) by|\bas)"
)
_ADAPTER = re.compile(r"\bpolicy-\d{6}\b")


def names_itself(text: str, base_model: str = "") -> bool:
    """Whether an answer tells which model or adapter gives it, or claims to.

    An adapter's name counts anywhere; a model's only as a claim about the speaker ("I am …", "made by …"), since people
    ask about models too.

    Args:
        base_model: name of the base in use, a hub id or a folder's name.
    """
    if "policy-" in text and _ADAPTER.search(text):
        return True
    names, claims = _claims(base_model)
    # Most answers hold none of the names, and looking for those costs a thirtieth of the pattern.
    return any(name in text for name in names) and claims.search(text) is not None


@lru_cache(maxsize=16)
def _claims(base_model: str) -> tuple[tuple[str, ...], re.Pattern[str]]:
    """The names to look for, and what a claim to be one of them looks like."""
    own = base_model.rstrip("/").rpartition("/")[2]
    stem = re.split(r"[-_.\d]", own, maxsplit=1)[0]
    names = sorted({*FAMILIES, *(name for name in (own, stem) if len(name) > 2)}, key=lambda name: (-len(name), name))
    listed = "|".join(re.escape(name) for name in names)
    return tuple(names), re.compile(rf"{_CLAIM}\s+(?:an?\s+|the\s+)?(?:\w+\s+){{0,2}}(?:{listed})")
