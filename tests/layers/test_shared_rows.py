import pytest
import torch
from torch import nn

from ideomotor.layers.quantize import FSQ
from ideomotor.layers.shared_rows import merge_rows, share_rows


def test_what_is_learned_of_one_row_is_learned_of_those_like_it():
    features, table = FSQ((3, 2)).features, nn.Embedding(6, 4)
    assert features.tolist()[:2] == [[1, 0, 0, 1, 0], [0, 1, 0, 1, 0]] and features.sum(1).eq(2).all()
    share_rows(table, features, std=0.3, own_std=0.1)
    before = table.weight.detach().clone()
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    table(torch.tensor([0])).sum().backward()
    optimizer.step()
    moved = (before - table.weight.detach())[:, 0]
    torch.testing.assert_close(moved, torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0, 0.0]))  # its own vector, and two shared
    whole = table.weight.detach().clone()
    merge_rows(table)
    assert set(table.state_dict()) == {"weight"} and table.weight.equal(whole) and table.weight.requires_grad


def test_features_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="features of 6 rows came for a table of 5"):
        share_rows(nn.Linear(4, 5, bias=False), FSQ((3, 2)).features, 0.1, 0.1)
