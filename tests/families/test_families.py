"""Every family that Transformers has: recorded exactly and run losslessly. For a night, or `make families`."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from grace_moe.errors import ModelError
from grace_moe.runtime.model.opening import open_model
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


REFUSED = {"diffusion_gemma": "is not generated token by token", "doge": "has no experts that"}


@pytest.mark.parametrize("family", LACKING)
def test_what_is_lacking_is_refused_and_said_truly(family, tmp_path):
    folder = build(family, tmp_path / family)
    with pytest.raises(ModelError, match=REFUSED.get(family, "is neither a causal nor an image-text model")):
        open_model(str(folder))
    kind = type(transformers.AutoConfig.from_pretrained(folder))
    mapped = {kind in transformers.MODEL_FOR_CAUSAL_LM_MAPPING, kind in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}
    assert mapped == ({True, False} if family in REFUSED else {False})


def test_what_doge_says_depends_on_its_neighbours_in_the_batch(tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(build("doge", tmp_path / "doge")).eval()
    one, other = torch.arange(4, 12)[None], torch.arange(30, 38)[None]
    with torch.no_grad():
        alone, beside = model(input_ids=one).logits, model(input_ids=torch.cat([one, other])).logits[:1]
    assert (alone - beside).abs().max() > 0.1
