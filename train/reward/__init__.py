"""The reward model: what voters prefer, learnt from tens of votes, given out token by token."""
