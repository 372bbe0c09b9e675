"""A model's thoughts are not its answer: they are taken out of what it wrote."""

import re

TAGS = "(?:think|thinking|thought|thoughts|reasoning|seed:think)"
OPENING = (
    rf"<{TAGS}>|\[THINK\]|◁think▷|<\|(?:inner_prefix|START_THINKING|begin_of_thought)\|>"
    r"|<\|channel\|>(?!final)|<\|channel>|(?-i:\Aanalysis(?=[A-Z]))"  # gpt-oss without marks
)
CLOSING = (
    rf"</{TAGS}>|\[/THINK\]|◁/think▷|<\|(?:inner_suffix|END_THINKING|end_of_thought)\|>"
    r"|<\|channel\|>final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|<channel\|>|(?-i:assistantfinal)"
)
MARKS = re.compile(f"(?P<opening>{OPENING})|{CLOSING}", re.IGNORECASE)


def without_thoughts(text: str) -> str:
    """`text` without thoughts and outer spaces; "" if the last thought has no end, as then nothing
    was answered. All before an end without a beginning, which a template gave, is thought too."""
    kept, start, thinking = "", 0, False
    for mark in MARKS.finditer(text):
        if not mark["opening"]:
            kept = kept if thinking else ""
            thinking, start = False, mark.end()
        elif not thinking:
            kept, thinking = kept + text[start : mark.start()], True
    return "" if thinking else (kept + text[start:]).strip()
