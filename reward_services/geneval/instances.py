"""From Mask2Former's logits to detections, as mmdet 3.3 does it for instance segmentation.

Shapes: Q queries, C classes, H by W pixels.
"""

from collections.abc import Sequence

import torch

from reward_services.geneval.canvas import Canvas, unpaint
from reward_services.geneval.detector import Detection

MOST_DETECTIONS = 100


def instances(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    canvas: Canvas,
    classes: Sequence[str],
    min_score: float = -1.0,
) -> list[Detection]:
    """The detections of one image whose confidence exceeds ``min_score``.

    ``class_logits`` is (Q, C + 1), the last class being "no object"; ``mask_logits`` (Q, h, w) covers the canvas. Of
    all pairs of query and class the 100 most probable are looked at; a query may appear under several classes.
    Confidence is the class probability times the mean mask probability inside the mask (logit above 0), so that a
    pair of a probability below ``min_score`` need not be enlarged.
    """
    probability_QC = class_logits.float().softmax(-1)[:, :-1]
    flat = probability_QC.flatten()
    probability, pair = flat.topk(min(MOST_DETECTIONS, len(flat)), sorted=False)
    pair, probability = pair[probability > min_score], probability[probability > min_score]
    if not len(pair):
        return []
    query, label = pair // len(classes), pair % len(classes)
    seen, place = query.unique(return_inverse=True)
    logits_NHW = unpaint(mask_logits[seen].float(), canvas)
    mask_NHW = logits_NHW > 0
    inside = mask_NHW.flatten(1).sum(1)
    quality = (logits_NHW.sigmoid() * mask_NHW).flatten(1).sum(1) / (inside + 1e-6)
    score = probability * quality[place]
    masks, boxes = mask_NHW.cpu().numpy(), bounding_boxes(mask_NHW).tolist()
    return [
        Detection(classes[name], value, tuple(boxes[index]), masks[index])
        for name, value, index in zip(label.tolist(), score.tolist(), place.tolist(), strict=True)
        if value > min_score
    ]


def bounding_boxes(mask_NHW: torch.Tensor) -> torch.Tensor:
    """(N, 4) boxes (x0, y0, x1, y1) around the true pixels, ends exclusive; zeros for an empty mask."""
    ends = []
    for side in (mask_NHW.any(1), mask_NHW.any(2)):  # columns (N, W), rows (N, H)
        length = side.shape[1]
        first = side.int().argmax(1)
        last = length - side.flip(1).int().argmax(1)
        ends.append((first, torch.where(side.any(1), last, torch.zeros_like(last))))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], dim=1).float()
