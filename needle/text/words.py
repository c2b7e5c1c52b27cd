"""Words inside names: `getWeather`, `get_weather` and `get-weather` are two words each."""

from __future__ import annotations

import re

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
