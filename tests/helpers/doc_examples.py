"""The examples that the documents show."""

from __future__ import annotations

from pathlib import Path


def examples_in(document: str) -> list[str]:
    text = (Path(__file__).parents[1] / "docs" / document).read_text()
    return [part.split("```")[0] for part in text.split("```yaml\n")[1:]]
