"""The examples that the documents show."""

from __future__ import annotations

from places import DOCS


def examples_in(document: str) -> list[str]:
    text = (DOCS / document).read_text()
    return [part.split("```")[0] for part in text.split("```yaml\n")[1:]]
