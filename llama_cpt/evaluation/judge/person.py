"""A judge in the terminal."""

from dataclasses import dataclass, field
from typing import ClassVar

from llama_cpt.evaluation.judge.verdicts import BlindedPair, Choice, QuitJudging, Verdict

ASKED = "Better answer: a, b, t (tie); q to stop, the same command goes on: "
VERDICTS: dict[str, Choice] = {"a": "a", "b": "b", "t": "tie", "tie": "tie"}


@dataclass
class PersonJudge:
    """Reads verdicts from stdin."""

    name: ClassVar[str] = "person"
    total: int = 0
    """Pairs left to judge, for the count."""
    done: int = field(default=0, init=False)

    def rule(self, shown: BlindedPair) -> Verdict:
        """Show and ask. Raises Quit where the person stops."""
        self.done += 1
        print(f"\n{'=' * 30} {self.done} of {self.total}")
        for turn in shown.prompt:
            print(f"[{turn.role}] {_plain(turn.content)}")
        for letter, answer in (("a", shown.left), ("b", shown.right)):
            print(f"\n--- answer {letter}\n{_plain(answer)}")
        print()
        while True:
            try:
                said = input(ASKED).strip().lower()
            except (EOFError, KeyboardInterrupt):
                print()
                raise QuitJudging from None
            if said == "q":
                raise QuitJudging
            if said in VERDICTS:
                return Verdict(VERDICTS[said])

    def stop(self) -> None:
        """Nothing is under way."""


def _plain(text: str) -> str:
    """Without what would command the terminal."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
