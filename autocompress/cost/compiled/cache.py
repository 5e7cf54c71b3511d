"""Answers that are kept, up to a number of them."""

from __future__ import annotations

from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Cache(dict[Key, Value]):
    """A dictionary that starts anew when it is full, so that memory stays bounded at the price of computing
    some answers again."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def keep(self, key: Key, value: Value) -> Value:
        """Remember a value, and return it."""
        if len(self) >= self.most:
            self.clear()
        self[key] = value
        return value
