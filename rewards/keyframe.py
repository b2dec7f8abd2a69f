"""`keyframe`: did the completion cite the moments that the annotation names?

Our own design (no formula was published for this reward): the F1 of cited moments against annotated
spans, in seconds of the clip.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpo.groups import Rollout
from rewards import reward
from rewards.parsing import KEYFRAMES, only_block, read_moments

Span = tuple[float, float]

ROUNDING_S = 1e-6  # 3.3 - 0.3 is not 3.0


@reward
def keyframe(rollout: Rollout, *, tolerance_s: float = 0.5) -> float | None:
    """F1 of the cited moments against the annotated spans; 0 if they can't be read.

    None where the sample has no annotation: there is nothing to compare with. A cited moment outside
    the clip is a miss.
    """
    annotated = rollout.sample.keyframes_s
    if not annotated:
        return None
    content = only_block(rollout.text, KEYFRAMES)
    cited = None if content is None else read_moments(content)
    if not cited:
        return 0.0
    duration_s = rollout.clip.duration_s if rollout.clip else float("inf")
    inside = [span for span in cited if span[0] >= 0 and span[1] <= duration_s + ROUNDING_S]
    return f1(inside, len(cited), annotated, tolerance_s=tolerance_s)


def f1(cited: Sequence[Span], num_cited: int, annotated: Sequence[Span], *, tolerance_s: float) -> float:
    """Harmonic mean of precision (cited moments that hit) and recall (annotated spans that are hit).

    A citation repeated is a citation more. With one annotated span, citing moments all over a clip of
    which it covers the share p earns 2p / (1 + p), and hitting it earns 1.
    """
    num_hits = sum(any(hits(moment, span, tolerance_s) for span in annotated) for moment in cited)
    num_found = sum(any(hits(moment, span, tolerance_s) for moment in cited) for span in annotated)
    precision, recall = num_hits / num_cited, num_found / len(annotated)
    return 2 * precision * recall / (precision + recall) if num_hits else 0.0


def hits(cited: Span, annotated: Span, tolerance_s: float) -> bool:
    """Whether the cited moment lies, as a whole, within the tolerance of the annotated span.

    So a cited span that is much longer than the annotated one misses, and a span never hits where its
    middle would miss: the notation itself earns nothing.
    """
    slack_s = tolerance_s + ROUNDING_S
    return annotated[0] - slack_s <= cited[0] and cited[1] <= annotated[1] + slack_s
