"""Hungarian matching of true boxes and [BOX] tokens where a phrase has several: one-to-one, of least total cost."""

from __future__ import annotations

import scipy
import torch

from unimed.models.heads.box_coordinates import paired_giou


def match_targets(predicted_xyxy: torch.Tensor, target_xyxy: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Targets in the order of their predictions.

    Boxes of one phrase have no order of their own; boxes of different phrases must never be swapped.

    Args:
        predicted_xyxy, target_xyxy: [N, 4], fractions of the same frame; row i of both belongs to group i.
        groups: [N], one number per phrase of a batch.

    Returns:
        indices [N] into `target_xyxy`: within each group the assignment of least L1 + (1 - GIoU) (Hungarian method).

    Raises:
        ValueError: the three do not have the same length.
    """
    if not len(predicted_xyxy) == len(target_xyxy) == len(groups):
        raise ValueError(f"{len(predicted_xyxy)} predictions, {len(target_xyxy)} targets, {len(groups)} groups")
    order = torch.arange(len(groups), device=target_xyxy.device)
    with torch.no_grad():
        for group in groups.unique():
            rows = torch.nonzero(groups == group).flatten()
            if len(rows) < 2:
                continue
            predicted, target = predicted_xyxy[rows].float()[:, None], target_xyxy[rows].float()[None]
            cost = (predicted - target).abs().mean(dim=-1) + 1 - paired_giou(predicted, target)
            ours, theirs = scipy.optimize.linear_sum_assignment(cost.cpu().numpy())
            order[rows[torch.as_tensor(ours, device=rows.device)]] = rows[torch.as_tensor(theirs, device=rows.device)]
    return order
