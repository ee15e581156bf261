"""ssd.pytorch's matching and multibox loss, in PyTorch and as Python loops."""

from typing import Any

import numpy as np

from benchmarks.inputs import Objects, Outputs
from benchmarks.runner import Program


def match_and_loss(outputs: Outputs, objects: Objects, priors: np.ndarray) -> Program:
    """Set up matching, hard-negative mining, loss and gradients of a batch in PyTorch."""
    import os

    import torch
    from torch.nn import functional

    (loc, conf), (boxes, labels, mask) = outputs, objects
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    prior = torch.from_numpy(np.asarray(priors))
    corners = torch.cat([prior[:, :2] - prior[:, 2:] / 2, prior[:, :2] + prior[:, 2:] / 2], 1)
    truths = [torch.from_numpy(boxes[b][mask[b]]) for b in range(len(boxes))]
    # In the logits class 0 is the background.
    classes = [torch.from_numpy(labels[b][mask[b]].astype(np.int64) + 1) for b in range(len(boxes))]
    loc_data = torch.from_numpy(loc).requires_grad_()
    conf_data = torch.from_numpy(conf).requires_grad_()

    def overlaps(truth: Any) -> Any:
        low = torch.max(truth[:, None, :2], corners[None, :, :2])
        high = torch.min(truth[:, None, 2:], corners[None, :, 2:])
        inter = (high - low).clamp(min=0).prod(2)
        area = (truth[:, 2:] - truth[:, :2]).prod(1)[:, None]
        return inter / (area + (corners[:, 2:] - corners[:, :2]).prod(1)[None] - inter)

    def match(truth: Any, label: Any) -> tuple[Any, Any]:
        iou = overlaps(truth)
        best_prior = iou.argmax(1)
        best_overlap, best_truth = iou.max(0)
        best_overlap.index_fill_(0, best_prior, 2)
        for j in range(len(best_prior)):
            best_truth[best_prior[j]] = j
        target = label[best_truth]
        target[best_overlap < 0.5] = 0
        matched = truth[best_truth]
        move = ((matched[:, :2] + matched[:, 2:]) / 2 - prior[:, :2]) / (0.1 * prior[:, 2:])
        growth = torch.log((matched[:, 2:] - matched[:, :2]) / prior[:, 2:]) / 0.2
        return torch.cat([move, growth], 1), target

    def program() -> tuple[np.ndarray, np.ndarray]:
        loc_data.grad = conf_data.grad = None
        with torch.no_grad():
            pairs = [match(*each) for each in zip(truths, classes, strict=True)]
        loc_t = torch.stack([pair[0] for pair in pairs])
        conf_t = torch.stack([pair[1] for pair in pairs])
        pos = conf_t > 0
        loss_l = functional.smooth_l1_loss(loc_data[pos], loc_t[pos], reduction="sum")
        flat = conf_data.view(-1, conf_data.shape[-1])
        loss_c = flat.detach().logsumexp(1) - flat.detach().gather(1, conf_t.view(-1, 1))[:, 0]
        loss_c = loss_c.view(len(loc), -1)
        loss_c[pos] = 0
        rank = loss_c.sort(1, descending=True)[1].sort(1)[1]
        neg = rank < torch.clamp(3 * pos.sum(1, keepdim=True), max=pos.shape[1] - 1)
        chosen = pos | neg
        loss = loss_l + functional.cross_entropy(conf_data[chosen], conf_t[chosen], reduction="sum")
        (loss / pos.sum()).backward()
        return loc_data.grad.numpy(), conf_data.grad.numpy()

    return program


def match_and_loss_by_loops(outputs: Outputs, objects: Objects, priors: np.ndarray) -> Program:
    """Set up the same loss without gradients, one object and one prior at a time."""
    (loc, conf), (boxes, labels, mask) = outputs, objects
    corners = np.concatenate(
        [priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1
    )
    corner_rows = corners.tolist()

    def image(b: int) -> float:
        rows = boxes[b][mask[b]].tolist()
        matched, best = [-1] * len(priors), [0.0] * len(priors)
        forced = {}
        for j, (x0, y0, x1, y1) in enumerate(rows):
            area, top = (x1 - x0) * (y1 - y0), (0.0, 0)
            for p, (a, c, d, e) in enumerate(corner_rows):
                width, height = min(x1, d) - max(x0, a), min(y1, e) - max(y0, c)
                if width <= 0 or height <= 0:
                    continue
                inter = width * height
                iou = inter / (area + (d - a) * (e - c) - inter)
                if iou > best[p]:
                    best[p], matched[p] = iou, j
                top = max(top, (iou, -p))
            forced[-top[1]] = j
        total, negatives, positives = 0.0, [], 0
        for p in range(len(priors)):
            j = forced.get(p, matched[p] if best[p] >= 0.5 else -1)
            row = conf[b, p]
            log_sum = float(np.log(np.sum(np.exp(row - row.max()))) + row.max())
            if j < 0:
                negatives.append(log_sum - float(row[0]))
                continue
            positives += 1
            total += log_sum - float(row[labels[b, j] + 1])
            x0, y0, x1, y1 = rows[j]
            cx, cy, w, h = priors[p]
            offsets = (
                ((x0 + x1) / 2 - cx) / (0.1 * w),
                ((y0 + y1) / 2 - cy) / (0.1 * h),
                np.log((x1 - x0) / w) / 0.2,
                np.log((y1 - y0) / h) / 0.2,
            )
            for predicted, target in zip(loc[b, p], offsets, strict=True):
                error = abs(float(predicted) - target)
                total += 0.5 * error * error if error < 1 else error - 0.5
        return total + sum(sorted(negatives, reverse=True)[: 3 * positives])

    return lambda: [image(b) for b in range(len(boxes))]
