"""A person at the terminal as the judge of pairs of answers."""

from dataclasses import dataclass, field

from llama_cpt.evaluation.judge.verdicts import BlindedPair, Choice, QuitJudging, Verdict

QUESTION = "Better answer: a, b, t (tie); q quits, the same command resumes: "
CHOICES: dict[str, Choice] = {"a": "a", "b": "b", "t": "tie", "tie": "tie"}


@dataclass
class PersonJudge:
    """A judge that reads verdicts from standard input."""

    total: int = 0
    """Number of pairs to judge; it is printed above each pair."""
    done: int = field(default=0, init=False)
    name: str = field(default="person", init=False)

    def rule(self, shown: BlindedPair) -> Verdict:
        """Print a pair and return the person's verdict; raise QuitJudging if the person quits."""
        self.done += 1
        print(f"\n{'=' * 30} {self.done} of {self.total}")
        for turn in shown.prompt:
            print(f"[{turn.role}] {_plain(turn.content)}")
        for letter, answer in (("a", shown.left), ("b", shown.right)):
            print(f"\n--- answer {letter}\n{_plain(answer)}")
        print()
        while True:
            try:
                reply = input(QUESTION).strip().lower()
            except (EOFError, KeyboardInterrupt):
                print()
                raise QuitJudging from None
            if reply == "q":
                raise QuitJudging
            if reply in CHOICES:
                return Verdict(CHOICES[reply])

    def stop(self) -> None:
        """Do nothing, because a person has no pending requests."""


def _plain(text: str) -> str:
    """Return ``text`` without characters that can be part of terminal escape sequences."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
