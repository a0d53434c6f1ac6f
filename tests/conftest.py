"""What every test starts from: one seed, an empty parameter store, float64."""

import os
from pathlib import Path

import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh():
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def shared_data() -> Path:
    """The folder of the data sets that are not shipped."""
    folder = os.environ.get("PPLVM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"PPLVM_DATA should name the folder of the data sets, got {folder!r}")
    return Path(folder)
