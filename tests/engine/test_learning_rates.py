import torch

from unimed.engine.training import with_rates


def test_groups_with_a_factor_learn_at_their_own_rate():
    plain, slow = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    groups = with_rates([{"params": [plain]}, {"params": [slow], "lr_mult": 0.1, "weight_decay": 0.0}], 2.0)
    optimizer = torch.optim.AdamW(groups, lr=2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 0.2]
    assert optimizer.param_groups[1]["weight_decay"] == 0.0 and "lr_mult" not in optimizer.param_groups[1]
    assert with_rates([plain], 2.0) == [plain]
