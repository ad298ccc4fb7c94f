"""The teacher's two prompts and how a prompt is cut to length: the texts are shortened, the answer cue never.

Strings only; tokenising and scoring are in `cross_encoder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from d2llm.config.sections import check_template

if TYPE_CHECKING:
    from d2llm.config.sections import TeacherSettings


@dataclass(frozen=True)
class Prompt:
    """A template cut into its fixed parts: instruction, what announces each text, the answer cue, and the two
    answers.
    """

    instruction: str
    query: str
    passage: str
    cue: str
    yes: str
    no: str

    @classmethod
    def parse(cls, template: str, yes: str, no: str) -> Prompt:
        """Split a template. Raises ConfigError as `check_template` does."""
        check_template(template, yes, no)
        before, rest = template.split("{a}")
        middle, cue = rest.split("{b}")
        head, _, announce = before.rpartition("\n")
        return cls(head + "\n" if head else "", announce, middle, cue, yes, no)

    def text(self, a: str, b: str) -> str:
        """The whole prompt as one string."""
        return self.instruction + self.query + a + self.passage + b + self.cue


def prompts(settings: TeacherSettings) -> dict[str, Prompt]:
    """The prompt of each mode."""
    return {
        mode: Prompt.parse(chosen.template, chosen.yes, chosen.no)
        for mode, chosen in (("symmetric", settings.symmetric), ("asymmetric", settings.asymmetric))
    }
