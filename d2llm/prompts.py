"""The teacher's two prompts and how a prompt is cut to length: the texts are shortened, the answer cue never.

Strings only; tokenising and scoring are in `teacher.py`. The Chinese prompts are those of the official release (docs/method.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from d2llm.config import TeacherSettings

SYMMETRIC_ZH = (
    "#P和#H将分别描述一种事件或问题，它们可能并无关系。仅使用此描述和您对世界的了解，判断#H是不是一个关于#P中的事件绝对正确的句子，"
    "或者#H是不是绝对正确地描述了#P的事件或问题，请回答是或不是，若您不确定，请回答不是。\n#P：{a}\n#H：{b}\n回答："
)
ASYMMETRIC_ZH = (
    "#Q将描述一个问题，#A将描述一个网络段落，它们可能并没有关系。仅依据这些描述和您对世界的了解，判断#A能不能正确地回答#Q中提出的问题，"
    "请回答能或不能。\n#Q：{a}\n#A：{b}\n回答："
)


@dataclass(frozen=True)
class Prompt:
    """A template cut into its fixed parts: instruction, what announces each text, the answer cue, and the two answers."""

    instruction: str
    query: str
    passage: str
    cue: str
    yes: str
    no: str

    @classmethod
    def parse(cls, template: str, yes: str, no: str) -> Prompt:
        """Split a template holding `{a}` once, then `{b}` once, and text after it (the answer cue).

        Raises ConfigError otherwise, and for answers that are blank or the same.
        """
        from d2llm.errors import ConfigError

        if template.count("{a}") != 1 or template.count("{b}") != 1 or template.index("{a}") > template.index("{b}"):
            raise ConfigError(f"prompt {template[:40]!r}…: needs {{a}} once and after it {{b}} once")
        before, rest = template.split("{a}")
        middle, cue = rest.split("{b}")
        if not cue.strip():
            raise ConfigError(f"prompt {template[:40]!r}…: needs an answer cue after {{b}}, such as '\\n回答：'")
        if not yes.strip() or not no.strip() or yes == no:
            raise ConfigError(f"prompt {template[:40]!r}…: needs two different answers; found {yes!r} and {no!r}")
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
