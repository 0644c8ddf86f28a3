"""Personal data: found, and taken out before anything is stored or sent."""

from feedback.privacy.config import Action, Kind, PrivacyConfig
from feedback.privacy.finders import Span, find
from feedback.privacy.redact import Redactor

__all__ = ["Action", "Kind", "PrivacyConfig", "Redactor", "Span", "find"]
