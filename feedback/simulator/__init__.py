"""Simulated people with a hidden taste, who use the public HTTP API only, and the yardstick for what was learnt."""

from feedback.simulator.client import RequestRefused, ServerGone, SimulateError
from feedback.simulator.runner import SimulateConfig, SimulateReport, run, simulate
from feedback.simulator.topics import HELD_OUT_TOPICS, TRAIN_TOPICS, Prompt, prompts
from feedback.simulator.utilities import UTILITIES, UnknownUtility, Utility, WinRate, true_win_rate, utility

__all__ = [
    "HELD_OUT_TOPICS",
    "TRAIN_TOPICS",
    "UTILITIES",
    "Prompt",
    "RequestRefused",
    "ServerGone",
    "SimulateConfig",
    "SimulateError",
    "SimulateReport",
    "UnknownUtility",
    "Utility",
    "WinRate",
    "prompts",
    "run",
    "simulate",
    "true_win_rate",
    "utility",
]
