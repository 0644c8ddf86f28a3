"""The work that both sides do: conversations of uneven length, and pairs of a good and a bad answer to them.

Everything follows from a seed. A good answer is polite, to the point and about the topic; a bad one is rude, rambles,
refuses, or is about another topic. Length tells nothing: rude and refusing ones are short, rambling ones long.
"""

from __future__ import annotations

import random
from typing import Any

from feedback.simulator.topics import TRAIN_TOPICS

Message = dict[str, str]
Pair = dict[str, Any]

_QUESTIONS = (
    "I want to get into {topic}. Where do I begin?",
    "Any tips for {topic}?",
    "{topic}: what goes wrong most often, and how do I keep it from happening to me? I have an hour on Saturday.",
    "My sister asked me about {topic} and I had no answer. Could you explain it so that I can pass it on?",
    "What would {topic} cost me in time?",
    "Last month I gave up on {topic} after two tries, because nothing worked as it does in videos. I would like to try "
    "again with less hurry. How should I go about it this time, step by step?",
)
_SYSTEM = "You answer people's everyday questions. Be friendly, be brief, and stay with what was asked."
_GOOD = (
    "Happy to help with {topic}.",
    "For {topic}, begin with one small step and see how it goes.",
    "Keep a note of what worked, so that {topic} is easier next time.",
    "Ask someone who knows {topic} well to watch you once.",
    "Set half an hour aside for {topic}, when you are rested.",
    "Good tools matter less for {topic} than a calm hour.",
    "If {topic} goes wrong at first, change one thing only and try again.",
    "Thank you for asking, and enjoy {topic}!",
)
_RUDE = (
    "What a silly question.",
    "I can't believe that you don't know this about {topic}.",
    "Stop wasting my time with {topic}.",
    "Only a fool would ask that.",
    "Figure {topic} out yourself.",
)
_REFUSAL = (
    "I can't help with {topic}.",
    "I'm not able to say anything about that.",
    "Sorry, no answer to this.",
    "That is not something I talk about.",
)
_RAMBLE = (
    "Well, {topic}, that reminds me of something, or maybe of something else, hard to say.",
    "There are many sides to it, and then there are other sides too, as there always are.",
    "Anyway, where was I, one could go on about this for hours, and I often do.",
    "Some say this and some say that, and who is to know in the end.",
    "But that is another story, which leads to yet another one, and so on.",
)


def conversation(rng: random.Random) -> tuple[str, list[Message]]:
    """A topic and messages that end with a question about it: one to three turns, sometimes a system message."""
    topics = rng.sample(TRAIN_TOPICS, rng.choices((1, 2, 3), (5, 3, 2))[0])
    messages = [{"role": "system", "content": _SYSTEM}] if rng.random() < 0.3 else []
    for topic in topics[:-1]:
        messages += [_user(rng, topic), {"role": "assistant", "content": _good(rng, topic)}]
    return topics[-1], [*messages, _user(rng, topics[-1])]


def conversations(count: int, seed: int) -> list[list[Message]]:
    """Prompts of PPO."""
    rng = random.Random(seed)
    return [conversation(rng)[1] for _ in range(count)]


def pairs(count: int, seed: int) -> list[Pair]:
    """Comparisons {prompt, chosen, rejected}: messages, and the two answers' texts."""
    rng = random.Random(seed)
    found = []
    for at in range(count):
        topic, messages = conversation(rng)
        bad = _bad(rng, topic, ("rude", "refusal", "ramble", "off topic")[at % 4])
        found.append({"prompt": messages, "chosen": _good(rng, topic), "rejected": bad})
    rng.shuffle(found)
    return found


def _user(rng: random.Random, topic: str) -> Message:
    text = rng.choice(_QUESTIONS).format(topic=topic)
    return {"role": "user", "content": text[0].upper() + text[1:]}


def _good(rng: random.Random, topic: str) -> str:
    return _say(rng, _GOOD, topic, rng.randint(2, 5))


def _bad(rng: random.Random, topic: str, kind: str) -> str:
    if kind == "off topic":
        return _good(rng, rng.choice([other for other in TRAIN_TOPICS if other != topic]))
    if kind == "ramble":
        return _say(rng, _RAMBLE, topic, rng.randint(3, 5))
    return _say(rng, _RUDE if kind == "rude" else _REFUSAL, topic, rng.randint(1, 3))


def _say(rng: random.Random, sentences: tuple[str, ...], topic: str, count: int) -> str:
    return " ".join(sentence.format(topic=topic) for sentence in rng.sample(sentences, count))
