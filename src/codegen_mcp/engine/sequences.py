"""Sequence numbers of one session: which were used, by which task, and what that means."""

from __future__ import annotations

from codegen_mcp.core.errors import AlreadyExists, InvalidRequest, OutcomeUnknown

MAX_SEQUENCE = 2**64 - 1


class Sequences:
    """The numbers in use. 0 is "not tracked" and never stored."""

    def __init__(self, last: int = 0) -> None:
        self._last = last
        self._tasks: dict[int, str] = {}

    @property
    def last(self) -> int:
        """The highest number ever used."""
        return self._last

    def check_new(self, sequence: int, task_id: str) -> None:
        """Accept a number for a task that has no record.

        Raises:
            InvalidRequest: It is no unsigned 64-bit number.
            AlreadyExists: Another task has it.
            OutcomeUnknown: It is not above the last one, and whose it was is not known any more.
        """
        if not 0 <= sequence <= MAX_SEQUENCE:
            raise InvalidRequest(f"sequence {sequence!r} is not between 0 and 2**64 - 1")
        if sequence == 0:
            return
        other = self._tasks.get(sequence)
        if other is not None:
            raise AlreadyExists(
                f"sequence {sequence} is task {other!r}, not {task_id!r}; retry with its id, or "
                f"go on with {self._last + 1}",
                metadata={"task_id": other, "last_sequence": str(self._last)},
            )
        if sequence <= self._last:
            raise OutcomeUnknown(
                f"sequence {sequence} is not above the last one, {self._last}, and no record of it "
                "is left: it may have run; check the workspace, then go on with "
                f"{self._last + 1}",
                metadata={"last_sequence": str(self._last)},
            )

    def add(self, sequence: int, task_id: str) -> None:
        """Note whose number it is."""
        if sequence:
            self._tasks[sequence] = task_id
            self._last = max(self._last, sequence)

    def forget(self, sequence: int) -> None:
        """Its record is gone; the number stays used."""
        self._tasks.pop(sequence, None)
