"""Boxes: heads' raw outputs are distilled, decoding them is the task's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.problem.tasks.metric import Metric
from autocompress.problem.tasks.task import Task

MOST_BOXES = 100
LEAST_SCORE = 0.05
SAME_BOX, FOUND = 0.5, 0.5
"""Overlap above which two boxes of a class are one, and above which a box counts as found."""
FOCUS = 2.0
HEAT_WEIGHT, BOX_WEIGHT = 1.0, 1.0


class Detection(Task):
    """Boxes by one anchor-free head; outputs are `(N, classes + 4, h, w)`, labels `(N, M, 5)`.

    A row of the labels is (class, left, top, right, bottom), shares of the image from 0 to 1; rows that begin
    with −1 are none. Of the outputs, the first channels are scores of each class (before the sigmoid) for a
    box that covers a cell's centre, the last four the distances from it to the box's sides, in cells, before
    a softplus (after FCOS, Tian et al. 2019, arXiv:1904.01355). A cell belongs to the smallest box whose
    centre lies within `radius` cells of its own.

    The metric is mean average precision at an overlap of 0.5 (mAP@0.5), the mean over the classes.
    """

    name = "detection"
    spec = "detection"
    targets = "boxes"
    curvature = "sigmoid"
    is_mean = False

    def __init__(self, radius: float = 1.5, most: int = MOST_BOXES) -> None:
        self.radius, self.most = float(radius), int(most)
        self.metric = Metric("mAP@0.5")

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return focal loss of the scores and overlap loss of the boxes, over the cells with a box."""
        heat, sides = outputs[:, :-4], functional.softplus(outputs[:, -4:])
        classes, wanted = self._assigned(labels, heat)
        held = classes >= 0
        hot = torch.zeros_like(heat)
        number, row, column = held.nonzero(as_tuple=True)
        hot[number, classes[held], row, column] = 1.0
        count = held.flatten(1).sum(1).clamp_min(1)
        p = heat.sigmoid()
        miss = torch.where(hot > 0, 1 - p, p)
        weight = torch.where(hot > 0, 0.75, 0.25)
        crossed = functional.binary_cross_entropy_with_logits(heat, hot, reduction="none")
        focal = (weight * miss**FOCUS * crossed).flatten(1).sum(1) / count
        overlap = 1 - _side_overlap(sides, wanted)
        return HEAT_WEIGHT * focal + BOX_WEIGHT * (overlap * held).flatten(1).sum(1) / count

    def distance(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return how far scores and, where the teacher sees something, sides are from its own."""
        del temperature
        share = teacher[:, :-4].sigmoid()
        weight = share.amax(1, keepdim=True)
        crossed = functional.binary_cross_entropy_with_logits(outputs[:, :-4], share, reduction="none")
        least = functional.binary_cross_entropy_with_logits(teacher[:, :-4], share, reduction="none")
        total = weight.sum().clamp_min(1.0)
        scores = ((crossed - least) * (outputs[:, :-4].sigmoid() - share).abs().detach().sqrt()).sum()
        sides = functional.smooth_l1_loss(
            functional.softplus(outputs[:, -4:]), functional.softplus(teacher[:, -4:]), reduction="none"
        )
        return 4 * scores / total + (sides.mean(1, keepdim=True) * weight).sum() / total

    def bent(self, change: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted squared change: of scores by p (1 − p), of sides by the largest p."""
        p = teacher[:, :-4].sigmoid()
        scores = (p * (1 - p) * change[:, :-4].square()).sum(1)
        return 0.5 * (scores + p.amax(1) * change[:, -4:].square().mean(1))

    def statistics(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return for each image its boxes as rows of (class, score, whether right), then how many boxes of
        each class it has."""
        classes = outputs.shape[1] - 4
        rows = torch.zeros(len(outputs), 3 * self.most + classes, dtype=torch.float64)
        rows[:, 0 : 3 * self.most : 3] = -1
        for number, (kinds, scores, boxes) in enumerate(self.predictions(outputs)):
            true = labels[number][labels[number][:, 0] >= 0]
            right = _matched(kinds, boxes, true)
            found = torch.stack([kinds.double(), scores.double(), right.double()], 1)
            rows[number, : found.numel()] = found.flatten()
            rows[number, 3 * self.most :] = torch.bincount(true[:, 0].long(), minlength=classes)[:classes]
        return rows

    def measured(self, statistics: Tensor) -> float:
        """Return mAP@0.5 of any images."""
        found = statistics[:, : 3 * self.most].reshape(-1, 3)
        found, counts = found[found[:, 0] >= 0], statistics[:, 3 * self.most :].sum(0)
        values = []
        for kind, count in enumerate(counts.tolist()):
            if count:
                mine = found[found[:, 0] == kind]
                values.append(_precision(mine[:, 1], mine[:, 2], count))
        return sum(values) / len(values) if values else float("nan")

    def predictions(self, outputs: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return for each image classes, scores and boxes, the surest first, none of them twice."""
        height, width = outputs.shape[2:]
        boxes = _boxes(functional.softplus(outputs[:, -4:]), height, width)
        shares = torch.nan_to_num(outputs[:, :-4].sigmoid())
        return [self._picked(share, box) for share, box in zip(shares, boxes, strict=True)]

    def check_outputs(self, outputs: tuple[int, ...], labels: Tensor, classes: int) -> str:
        """Return what is wrong."""
        del classes
        if len(outputs) != 3 or outputs[0] < 5:
            return f"it needs a map for each class and four for the sides, and the outputs are {outputs}"
        if labels.ndim != 3 or labels.shape[2] != 5:
            return (
                f"it needs rows (class, left, top, right, bottom), and labels are {tuple(labels.shape[1:])}"
            )
        kinds = labels[:, :, 0]
        if float(kinds.max()) >= outputs[0] - 4:
            return f"a box has the class {int(kinds.max())}, and there are scores of {outputs[0] - 4}"
        sides = labels[kinds >= 0][:, 1:]
        if len(sides) and (float(sides.min()) < -0.01 or float(sides.max()) > 1.01):
            return f"sides are shares of the image, from 0 to 1, and there is {float(sides.max()):g}"
        return ""

    def _picked(self, share: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes of one image: local maxima first cut by score, then by overlap within a class."""
        flat = share.flatten(1)
        kinds, cells = (flat > LEAST_SCORE).nonzero(as_tuple=True)
        scores = flat[kinds, cells]
        order = scores.argsort(descending=True, stable=True)[: 10 * self.most]
        kinds, scores, found = kinds[order], scores[order], boxes.flatten(1).T[cells[order]]
        kept: list[int] = []
        overlaps = overlap_of(found, found)
        gone = torch.zeros(len(order), dtype=torch.bool)
        for number in range(len(order)):
            if gone[number]:
                continue
            kept.append(number)
            if len(kept) == self.most:
                break
            gone |= (overlaps[number] > SAME_BOX) & (kinds == kinds[number])
        return kinds[kept], scores[kept], found[kept]

    def _assigned(self, labels: Tensor, heat: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each cell the class of its box, `(N, h, w)`, −1 for none, and sides, `(N, 4, h, w)`."""
        height, width = heat.shape[2:]
        scale = labels.new_tensor([width, height, width, height])
        boxes = labels[:, :, 1:] * scale
        rows = torch.arange(height, device=labels.device) + 0.5
        columns = torch.arange(width, device=labels.device) + 0.5
        middle = (boxes[:, :, :2] + boxes[:, :, 2:]) / 2
        near = (columns - middle[:, :, 0, None, None]).abs() < self.radius
        near = near & ((rows[:, None] - middle[:, :, 1, None, None]).abs() < self.radius)
        sides = torch.stack(
            [
                (columns - boxes[:, :, 0, None, None]).expand(*near.shape),
                (rows[:, None] - boxes[:, :, 1, None, None]).expand(*near.shape),
                (boxes[:, :, 2, None, None] - columns).expand(*near.shape),
                (boxes[:, :, 3, None, None] - rows[:, None]).expand(*near.shape),
            ],
            2,
        )
        inside = near & (sides.amin(2) > 0) & (labels[:, :, 0, None, None] >= 0)
        size = ((boxes[:, :, 2] - boxes[:, :, 0]) * (boxes[:, :, 3] - boxes[:, :, 1]))[:, :, None, None]
        size = size.expand(*near.shape).masked_fill(~inside, torch.inf)
        smallest, which = size.min(1)
        kind = labels[:, :, 0].long()[:, :, None, None].expand(*near.shape).gather(1, which[:, None])[:, 0]
        chosen = sides.gather(1, which[:, None, None].expand(-1, 1, 4, -1, -1))[:, 0]
        return torch.where(torch.isfinite(smallest), kind, -1), chosen


def _boxes(sides: Tensor, height: int, width: int) -> Tensor:
    """Return boxes as shares of the image, `(N, 4, h, w)`, of distances in cells."""
    rows = (torch.arange(height, device=sides.device) + 0.5)[:, None].expand(height, width)
    columns = (torch.arange(width, device=sides.device) + 0.5).expand(height, width)
    left, top, right, bottom = sides.unbind(1)
    found = [
        (columns - left) / width,
        (rows - top) / height,
        (columns + right) / width,
        (rows + bottom) / height,
    ]
    return torch.stack(found, 1).clamp(0, 1)


def _side_overlap(mine: Tensor, theirs: Tensor) -> Tensor:
    """Return intersection over union of boxes around one point, by distances `(N, 4, h, w)` to the sides."""
    theirs = theirs.clamp_min(0)
    low = torch.minimum(mine, theirs)
    both = (low[:, 0] + low[:, 2]) * (low[:, 1] + low[:, 3])
    areas = [(one[:, 0] + one[:, 2]) * (one[:, 1] + one[:, 3]) for one in (mine, theirs)]
    return both / (areas[0] + areas[1] - both).clamp_min(1e-6)


def overlap_of(first: Tensor, second: Tensor) -> Tensor:
    """Return intersection over union of boxes `(a, 4)` and `(b, 4)`, `(a, b)`."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    both = (high - low).clamp_min(0).prod(2)
    areas = [(one[:, 2:] - one[:, :2]).clamp_min(0).prod(1) for one in (first, second)]
    return both / (areas[0][:, None] + areas[1][None] - both).clamp_min(1e-9)


def _matched(kinds: Tensor, boxes: Tensor, true: Tensor) -> Tensor:
    """Return which boxes, surest first, find a true one of their class that no surer one found."""
    right = torch.zeros(len(kinds), dtype=torch.bool)
    if not len(true) or not len(kinds):
        return right
    overlaps = overlap_of(boxes, true[:, 1:].to(boxes))
    overlaps[kinds[:, None] != true[None, :, 0].long()] = 0.0
    for number in range(len(kinds)):
        best, which = overlaps[number].max(0)
        if best >= FOUND:
            right[number] = True
            overlaps[:, which] = 0.0
    return right


def _precision(scores: Tensor, right: Tensor, count: float) -> float:
    """Return average precision where `count` boxes are to be found, by the area under the rising hull."""
    order = scores.argsort(descending=True, stable=True)
    found = right[order].cumsum(0)
    precision = found / torch.arange(1, len(found) + 1, dtype=torch.float64)
    hull = precision.flip(0).cummax(0).values.flip(0)
    return float((hull * right[order]).sum() / count)
