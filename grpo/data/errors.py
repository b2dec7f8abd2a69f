"""What is wrong with a data set, in parts: a run shows it as one line, the doctor lists and counts by the parts."""

from __future__ import annotations

from typing import Literal

from grpo.groups import Sample

Kind = Literal["record", "duplicate", "missing"]


class DataError(ValueError):
    """Something wrong with a record or a file, shown as `source: reason`."""

    def __init__(self, source: str, reason: str, kind: Kind = "record") -> None:
        """source: file and line or record."""
        super().__init__(f"{source}: {reason}")
        self.source, self.reason = source, reason
        self.kind: Kind = kind


class NoSuchFile(DataError, FileNotFoundError):
    """A data set's own file that is not there."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason, kind="missing")


class BadRecords(ValueError):
    """Records that could not be translated. The message is about the first; all are in `problems`, and what the
    other records gave is in `samples`.
    """

    def __init__(self, problems: list[DataError], samples: list[Sample]) -> None:
        more = len(problems) - 1
        others = (
            f" ({more} more bad record{'s' if more > 1 else ''} in the file; egogrpo doctor names all)"
            if more
            else ""
        )
        super().__init__(f"{problems[0]}{others}")
        self.problems, self.samples = problems, samples


def placed(error: ValueError, source: str) -> DataError:
    """The error with its source, where it does not say one itself."""
    return error if isinstance(error, DataError) else DataError(source, str(error))


def used_before(sample: Sample, first: Sample) -> DataError:
    """The error for an id that two samples have."""
    return DataError(sample.source, f"id {sample.id!r} was already used in {first.source}", "duplicate")
