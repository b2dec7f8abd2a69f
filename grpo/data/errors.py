"""The errors of data sets, in parts: a run shows one as a line, the doctor lists and counts by the parts."""

from __future__ import annotations

from typing import Literal

from grpo.groups import Sample

Kind = Literal["record", "duplicate", "missing", "unreadable", "too short", "too long", "repeated", "config"]


class DataError(ValueError):
    """The error for a record or a file that is wrong, shown as `source: reason`."""

    def __init__(self, source: str, reason: str, kind: Kind = "record", *, is_fatal: bool = True) -> None:
        """source: the file and its line or record, or the config's key. is_fatal: a run stops, or loses the sample."""
        super().__init__(f"{source}: {reason}")
        self.source, self.reason, self.is_fatal = source, reason, is_fatal
        self.kind: Kind = kind


class NoSuchFile(DataError, FileNotFoundError):
    """The error for a data set's own file that is not there."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason, kind="missing")


class BadRecords(ValueError):
    """The error for records that could not be translated. Its message is about the first of them.

    All are in `problems`, and the samples of the other records in `samples`.
    """

    def __init__(self, problems: list[DataError], samples: list[Sample]) -> None:
        more = len(problems) - 1
        what = f"{more} more bad record{'s' if more > 1 else ''} in the file; egogrpo doctor names all"
        super().__init__(f"{problems[0]}{f' ({what})' if more else ''}")
        self.problems, self.samples = problems, samples


def placed(error: ValueError, source: str) -> DataError:
    """The error with its source, unless it names one itself."""
    return error if isinstance(error, DataError) else DataError(source, str(error))


def used_before(sample: Sample, first: Sample, hint: str = "") -> DataError:
    """The error for an id that two samples have."""
    return DataError(sample.source, f"id {sample.id!r} was already used in {first.source}{hint}", "duplicate")
