"""What a node may conclude from how the primary answers it, and does not answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.model import Answer

LONGEST_STEP_S = 0.3  # a longer pause between two looks was ours: it says nothing about the primary


@dataclass(slots=True)
class Evidence:
    """Gathers what is seen of one primary. `suspect_after_s`: silence of so long counts."""

    suspect_after_s: float
    answer: Answer = Answer.UNKNOWN
    silent_s: float = 0.0  # how long nothing has answered while we were looking

    def answered(self) -> Answer:
        """Anything at all came from its PostgreSQL."""
        self.silent_s = 0.0
        self.answer = Answer.OK
        return self.answer

    def refused(self) -> Answer:
        """A new connection was refused, and there is no open one."""
        self.silent_s = 0.0
        self.answer = Answer.REFUSED
        return self.answer

    def waited(self, elapsed_s: float) -> None:
        """Time went by with no question unanswered yet."""
        self.silent_s += min(elapsed_s, LONGEST_STEP_S * 2)

    def unanswered(self, elapsed_s: float, *, new_refused: bool, stream_age_s: float | None) -> Answer:
        """Questions have gone unanswered for `elapsed_s` more: on the open connection, if there is one, and on a new
        one (`new_refused`: that one was refused). `stream_age_s`: since WAL last came; None: no stream."""
        self.silent_s += min(elapsed_s, LONGEST_STEP_S)
        streams = stream_age_s is not None and stream_age_s < self.suspect_after_s
        if self.silent_s >= self.suspect_after_s and not streams:
            self.answer = Answer.REFUSED if new_refused else Answer.SILENT
        return self.answer
