"""A question about the driver, and its answer.

`facts` are what is compared with the fake, so they hold for any machine; `seen` is what this machine showed.
"""

from dataclasses import dataclass, field

QUESTIONS = []


class NotAsked(Exception):
    """Why a question cannot be asked here."""


@dataclass
class Answer:
    text: str
    facts: dict = field(default_factory=dict)
    seen: dict = field(default_factory=dict)


@dataclass
class Question:
    id: str
    text: str
    how: str
    ask: object = None
    changes: bool = False
    never: str = ""


def question(id, text, how, changes=False):
    """Makes the function that answers it a question."""

    def add(function):
        QUESTIONS.append(Question(id, text, how, function, changes))
        return function

    return add


def never(id, text, reason):
    """A question that this program does not ask, and why."""
    QUESTIONS.append(Question(id, text, "not by this program", never=reason))
