"""What a worker process runs in `test_warm.py`; in a file of its own, so that workers don't import the tests' needs."""

import os

from grpo.groups import Sample
from grpo.media.warm import Outcome


def crash_on_two(sample: Sample) -> Outcome:
    """As a decoder that crashes takes its process with it."""
    if sample.video in ("3", "8"):
        os._exit(11)
    return Outcome(name=str(sample.video))
