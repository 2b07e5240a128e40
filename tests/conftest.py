"""Fixtures that several folders share."""

import os
import subprocess

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

from tests import warm_python

settings.register_profile("grace", deadline=None)
settings.load_profile("grace")


@pytest.fixture
def warm(monkeypatch):
    """What Python starts in the test begins with torch and Transformers imported."""
    monkeypatch.setattr(subprocess, "Popen", warm_python.Popen)
