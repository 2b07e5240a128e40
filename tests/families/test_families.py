"""Every family that Transformers has: recorded exactly and run losslessly. For a night, or `make families`."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")

from tests.families.examination import examine
from tests.families.names import FAMILIES, LACKING
from tests.families.tiny import build


@pytest.mark.nightly
@pytest.mark.ranks
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in LACKING])
def test_recorded_exactly_and_run_losslessly(family, pool, tmp_path):
    outcome = examine(build(family, tmp_path / family), pool, tmp_path)
    assert outcome.right, outcome


def test_the_list_has_every_family_that_transformers_has():
    """Those with a class of experts, by the source of their modules."""
    models = Path(importlib.import_module("transformers.models").__file__).parent
    sources = ((name, models / name / f"modeling_{name}.py") for _, name, _ in pkgutil.iter_modules([str(models)]))
    having = {
        name for name, source in sources if source.exists() and re.search(r"^class \w*Experts?\w*\(", source.read_text(), re.MULTILINE)
    }
    assert having - set(FAMILIES) == set()
    assert set(LACKING) <= set(FAMILIES)
