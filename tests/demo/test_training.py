"""What trains the demo model."""

import pytest
import torch

if not hasattr(torch.optim, "Muon"):
    pytest.skip("Muon is in torch from 2.9 on", allow_module_level=True)

from tests.kit.equality import close
from tools.train_demo.muon import StackedMuon


def test_matrices_that_are_orthogonalised_together_move_as_each_by_itself():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (8, 8), (16, 8), (8, 32), (8, 8)]
    stacked = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    alone = [torch.nn.Parameter(one.detach().clone()) for one in stacked]
    ours = StackedMuon(stacked, lr=0.02, momentum=0.9)
    theirs = torch.optim.Muon(alone, lr=0.02, momentum=0.9, weight_decay=0.0)
    for _ in range(3):
        for one, other in zip(stacked, alone, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    # three steps, each of 0.02 times a direction in bfloat16
    assert close(stacked, alone, depth=3, growth=0.02, dtype=torch.bfloat16)
