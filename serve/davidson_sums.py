"""Votes added up by who met whom, for `serve.davidson`: gradients and curvatures without a row a vote.

A vote's utilities rest on five parameters: the two contenders' strengths, tie, bias, lengthen. So a curvature is made
of few sums a meeting (left, right), whatever the number of votes and of contenders.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Slopes(NamedTuple):
    """Sums of slopes, for each of R draws: along the difference of each of C meetings, and over all votes."""

    meeting: Floats
    tie: Floats
    longer: Floats


class Bends(NamedTuple):
    """Sums of curvatures: (R, C) of difference, difference times length and cross term; (R,) over all votes."""

    meeting: Floats
    meeting_longer: Floats
    meeting_tie: Floats
    longer: Floats
    longer_tie: Floats
    tie: Floats


class Sums:
    """Adds up what N votes say, in all or as often as each was drawn.

    Args:
        left, right: (N,) contenders of each vote, 0 to K - 1; votes of one meeting stand together (`in_order`).
        longer: (N,) how much longer the left answer is; zeros where length isn't controlled.
        contenders: K.
    """

    def __init__(self, left: NDArray[np.int32], right: NDArray[np.int32], longer: Floats, contenders: int) -> None:
        self._left, self._right, self._longer = left, right, longer
        self.contenders = contenders
        meeting = _meetings(left, right, contenders)
        begins = np.r_[True, meeting[1:] != meeting[:-1]] if len(meeting) else np.zeros(0, dtype=bool)
        self._starts = np.flatnonzero(begins)
        self._first, self._second = left[self._starts].astype(np.int64), right[self._starts].astype(np.int64)

    def differences(self, parameters: Floats) -> Floats:
        """(N,) utility of the left answer less the right one's; of parameters (K + 3,)."""
        size = self.contenders
        less = parameters[self._left] - parameters[self._right]
        found: Floats = less + parameters[size + 1] + parameters[size + 2] * self._longer
        return found

    def slopes(self, difference: Floats, tie: Floats, drawn: Floats) -> Slopes:
        """Sums of slopes (N,) along the difference and the tie.

        Args:
            drawn: (R, N) how often each draw has each vote.
        """
        return Slopes(self._by_meeting(difference, drawn), drawn @ tie, drawn @ (difference * self._longer))

    def bends(self, difference: Floats, cross: Floats, tie: Floats, drawn: Floats) -> Bends:
        """Sums of second derivatives (N,) along the difference twice, difference and tie, tie twice."""
        longer = self._longer
        return Bends(
            self._by_meeting(difference, drawn),
            self._by_meeting(difference * longer, drawn),
            self._by_meeting(cross, drawn),
            drawn @ (difference * longer**2),
            drawn @ (cross * longer),
            drawn @ tie,
        )

    def gradients(self, sums: Slopes) -> Floats:
        """(R, K + 3) of the strengths, tie, bias, lengthen."""
        return np.column_stack([self._less(sums.meeting), sums.tie, sums.meeting.sum(axis=1), sums.longer])

    def curvatures(self, sums: Bends) -> Floats:
        """(R, K + 3, K + 3) of the same."""
        size = self.contenders
        tie, bias, lengthen = size, size + 1, size + 2
        found = np.zeros((len(sums.tie), size + 3, size + 3))
        found[:, self._first, self._second] -= sums.meeting
        found[:, self._second, self._first] -= sums.meeting
        everybody = np.arange(size)
        found[:, everybody, everybody] += self._spread(self._first, sums.meeting)
        found[:, everybody, everybody] += self._spread(self._second, sums.meeting)
        for place, part in ((tie, sums.meeting_tie), (bias, sums.meeting), (lengthen, sums.meeting_longer)):
            found[:, :size, place] = found[:, place, :size] = self._less(part)
        found[:, tie, tie], found[:, bias, bias] = sums.tie, sums.meeting.sum(axis=1)
        found[:, lengthen, lengthen] = sums.longer
        found[:, tie, bias] = found[:, bias, tie] = sums.meeting_tie.sum(axis=1)
        found[:, tie, lengthen] = found[:, lengthen, tie] = sums.longer_tie
        found[:, bias, lengthen] = found[:, lengthen, bias] = sums.meeting_longer.sum(axis=1)
        return found

    def _by_meeting(self, values: Floats, drawn: Floats) -> Floats:
        """(R, C) sums of values (N,)."""
        if not len(self._starts):
            return np.zeros((len(drawn), 0))
        found: Floats = np.add.reduceat(drawn * values, self._starts, axis=1)
        return found

    def _less(self, part: Floats) -> Floats:
        """(R, K) what meetings (R, C) give to their left contender, less what they give to their right one."""
        return self._spread(self._first, part) - self._spread(self._second, part)

    def _spread(self, contender: Ints, part: Floats) -> Floats:
        """(R, K) sums of (R, C) by the meetings' contender (C,)."""
        rows, size = len(part), self.contenders
        place = (np.arange(rows)[:, None] * size + contender).ravel()
        found: Floats = np.bincount(place, part.ravel(), minlength=rows * size).astype(np.float64, copy=False)
        return found.reshape(rows, size)


def in_order(left: NDArray[np.int32], right: NDArray[np.int32], contenders: int) -> Ints:
    """The order in which votes of one meeting stand together."""
    return np.argsort(_meetings(left, right, contenders), kind="stable")


def _meetings(left: NDArray[np.int32], right: NDArray[np.int32], contenders: int) -> Ints:
    return left.astype(np.int64) * contenders + right
