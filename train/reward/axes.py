"""Directions that people can name, from good/bad to I/you: a prior for tastes that few votes could not find.

A few hundred dimensions of embedding take hundreds of votes to weigh; tastes in words mostly lie along qualities that
have names. Each axis is the difference between the mean embeddings of words for a quality and of words for its
opposite, read from the base's own table (the semantic differential: Osgood, Suci & Tannenbaum 1957; axes between
antonyms in embeddings: An, Kwak & Ahn 2018, "SemAxis"). In a base that knows no English they are noise, which the fit
leaves out as it does any view that explains no vote.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from train.reward.probe import Array

POLES = (
    ("good great excellent", "bad terrible awful"),
    ("kind caring gentle", "cruel harsh mean"),
    ("warm friendly welcoming", "cold distant hostile"),
    ("happy joyful glad", "sad unhappy miserable"),
    ("calm peaceful relaxed", "anxious angry tense"),
    ("polite respectful thankful", "rude insulting"),
    ("safe secure careful", "dangerous risky reckless"),
    ("simple easy plain", "complex complicated elaborate"),
    ("short brief", "long lengthy"),
    ("certain definitely always", "perhaps maybe possibly"),
    ("formal therefore furthermore", "okay yeah hey"),
    ("concrete table stone", "abstract concept notion"),
    ("funny joke silly", "serious grave solemn"),
    ("strong powerful", "weak feeble"),
    ("fast quick sudden", "slow gradual"),
    ("new modern recent", "old ancient past"),
    ("many all every", "few none no"),
    ("I me my", "you your yours"),
    ("do make go", "be is was"),
    ("should must need", "can could might"),
    ("science data number", "story art feeling"),
    ("people friend family", "thing object tool"),
    ("and but because", "first second finally"),
    ("big large huge", "small little tiny"),
)
"""Words for a quality, and for its opposite."""


def axes(tokenizer: Any, embeddings: Tensor) -> Array:
    """Unit vectors of `POLES`, (H, axes) float64, from embeddings (V, H); each word counts in its own length's unit."""
    table = embeddings.detach().cpu().double().numpy()
    centre = table.mean(axis=0)

    def mean(words: str) -> Array:
        return np.asarray(np.mean([_direction(tokenizer, table, centre, word) for word in words.split()], axis=0))

    found = np.stack([mean(one) - mean(other) for one, other in POLES], axis=1)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=0), 1e-12))


def _direction(tokenizer: Any, table: Array, centre: Array, word: str) -> Array:
    """A word's tokens, as it stands within a sentence: each away from the centre, of length 1; their mean."""
    ids = tokenizer.encode(f" {word}", add_special_tokens=False)
    away = table[ids] - centre
    return np.asarray((away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)).mean(axis=0))
