"""The Chinese prompts of the official release (docs/method.md), and what a prompt has to hold. What is made of one is in `d2llm.teacher.prompts`."""

from __future__ import annotations

from d2llm.run.errors import ConfigError

SYMMETRIC_ZH = (
    "#P和#H将分别描述一种事件或问题，它们可能并无关系。仅使用此描述和您对世界的了解，判断#H是不是一个关于#P中的事件绝对正确的句子，"
    "或者#H是不是绝对正确地描述了#P的事件或问题，请回答是或不是，若您不确定，请回答不是。\n#P：{a}\n#H：{b}\n回答："
)
ASYMMETRIC_ZH = (
    "#Q将描述一个问题，#A将描述一个网络段落，它们可能并没有关系。仅依据这些描述和您对世界的了解，判断#A能不能正确地回答#Q中提出的问题，"
    "请回答能或不能。\n#Q：{a}\n#A：{b}\n回答："
)


def check_template(template: str, yes: str, no: str) -> None:
    """Refuse, by ConfigError, a template without `{a}` once, then `{b}` once, and text after it (the answer cue), and answers that are blank or the same."""
    if template.count("{a}") != 1 or template.count("{b}") != 1 or template.index("{a}") > template.index("{b}"):
        raise ConfigError(f"prompt {template[:40]!r}…: needs {{a}} once and after it {{b}} once")
    if not template.partition("{b}")[2].strip():
        raise ConfigError(f"prompt {template[:40]!r}…: needs an answer cue after {{b}}, such as '\\n回答：'")
    if not yes.strip() or not no.strip() or yes == no:
        raise ConfigError(f"prompt {template[:40]!r}…: needs two different answers; found {yes!r} and {no!r}")
