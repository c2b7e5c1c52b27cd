"""How two requests become one sentence. Each generator has its own words, so that none is known by heart."""

from __future__ import annotations

WRITTEN = ("{} and then {}", "{}; {}", "{}, then {}", "{} and {}", "{}, and also {}", "{}. {}", "{}, {}")
SPOKEN = (
    *("{} and {}", "{}, then {}", "{} and then {}", "{}. Also, {}", "{}; {}", "first {}, after that {}", "{}. {}"),
    "{}, and while you're at it {}",
)
MADE_UP = (
    *("{} and {}", "{}. Also, {}", "{}, then {}", "{}; {}", "{} and then {}", "{}. {}", "{}, and also {}"),
    "{}, and {}",
)
