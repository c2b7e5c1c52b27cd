"""Memory bounded by size."""

from __future__ import annotations

from needle.text.lru import Lru, kept


def test_what_was_not_used_the_longest_while_goes_first() -> None:
    lru: Lru[int] = Lru(30)
    for number, key in enumerate("abc"):
        lru.put(key, number, 9)
    assert lru.get("a") == 0
    lru.put("d", 3, 9)
    assert [lru.get(key) for key in "abcd"] == [0, None, 2, 3]


def test_sizes_add_up_whatever_is_written_again_or_too_large() -> None:
    lru: Lru[str] = Lru(100)
    for _ in range(50):
        lru.put("key", "value", 10)
    assert lru.size == 13
    lru.put("k" * 101, "large")
    assert (lru.size, lru.get("k" * 101)) == (0, None)


def test_a_function_is_asked_again_only_for_what_is_gone() -> None:
    asked: list[str] = []

    @kept(10)
    def length(text: str) -> int:
        asked.append(text)
        return len(text)

    assert [length(text) for text in ("four", "five", "four", "sixsix", "five")] == [4, 4, 4, 6, 4]
    assert asked == ["four", "five", "sixsix", "five"]
