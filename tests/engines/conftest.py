"""Fixtures of the plug-ins' tests."""

import pytest

from grace_moe.engines.live.live_plan import PLAN
from tests.engines.plans import placement


@pytest.fixture
def plan_path(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    placement().save(path)
    monkeypatch.setenv(PLAN, str(path))
    return path
