"""The Triton kernel of our replica choice on a GPU; `make contract` runs the same cases by Triton's interpreter."""

import os

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("there is no GPU", allow_module_level=True)

from contract import kernel_cases


@pytest.mark.parametrize("top_k", kernel_cases.TOP_K)
@pytest.mark.parametrize("choice", kernel_cases.CHOICES)
@pytest.mark.parametrize("shape", kernel_cases.SHAPES)
def test_on_cuda_it_chooses_as_the_reference_and_numpy(shape, choice, top_k):
    kernel_cases.check(shape, choice, top_k, torch.device("cuda"))
