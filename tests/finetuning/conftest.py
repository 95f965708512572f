"""What the tests of fine-tuning share."""

import pytest
import torch

from mvd_hf import MVDConfig, MVDModel
from tiny_models import TINY


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    """The folder of an encoder with random weights, and a card with a license."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    MVDModel(MVDConfig.from_name("mvd-b", **TINY, num_frames=4)).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    return str(folder)
