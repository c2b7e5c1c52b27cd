"""Needle: distil tool calling into a student small enough for a laptop CPU.

from needle import Needle

answer = Needle().call("set a timer for 20 minutes", tools=[{"name": "set_timer", "parameters": {...}}])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from needle.api import Needle

__version__ = "0.1.0"
__all__ = ["Needle", "__version__"]


def __getattr__(name: str) -> Any:
    """`Needle` is imported when it is first asked for: `import needle` alone costs nothing."""
    if name != "Needle":
        raise AttributeError(f"module 'needle' has no attribute '{name}'")
    from needle.api import Needle

    return Needle
