"""Hypothesis without a time limit: the first example also pays for torch's start."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")
