"""Any endpoint that speaks OpenAI's chat completions as a teacher: a hosted one, or a server on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from needle.collect.services import hosted
from needle.collect.services.hosted import Ask, Batches, Fault, Reply, Usage, read_body, sent_names
from needle.text.records import Call

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
FINISHES = {
    "stop": hosted.STOP,
    "tool_calls": hosted.STOP,
    "function_call": hosted.STOP,
    "length": "max_tokens",
    "content_filter": "safety",
}


class OpenAI:
    """One model behind `base_url`, which ends in the API's version (http://127.0.0.1:8080/v1); made where an event loop
    runs."""

    provider = "openai"

    def __init__(
        self, model: str, key: str | None, base_url: str, timeout: float = 60.0, connections: int = 256
    ) -> None:
        self.model, self.url = model, base_url.rstrip("/") + "/chat/completions"
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(total=timeout),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        self.batches: Batches | None = None

    async def ask(self, ask: Ask) -> str:
        """The answer's body. Raises `Fault`."""
        try:
            async with self.session.post(self.url, json=chat_body(ask)) as response:
                body = await response.text(errors="replace")
                if response.status == 200:
                    return body
                raise _fault(response.status, body, response.headers)
        except TimeoutError as error:
            raise Fault(hosted.TIMEOUT, "no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Fault(hosted.CONNECTION, f"{type(error).__name__}: {error}"[:300]) from error

    def read(self, ask: Ask, raw: str) -> Reply:
        return hosted.in_words_of(read_completion(raw, sent_names(ask.tools, NAME)), ask.tools)

    async def close(self) -> None:
        await self.session.close()


def chat_body(ask: Ask) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": ask.model,
        "messages": [{"role": "system", "content": ask.system}, {"role": "user", "content": ask.text}],
        "max_completion_tokens": ask.max_tokens,
    }
    if ask.tools:
        sent = sent_names(ask.tools, NAME)
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": name, "description": tool.description, "parameters": tool.parameters},
            }
            for name, tool in zip(sent, ask.tools, strict=True)
        ]
    if ask.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ask.schema}}
    if ask.thinking:
        body["reasoning_effort"] = ask.thinking
    if ask.logprobs:
        body |= {"logprobs": True, "top_logprobs": ask.logprobs}
    return body


def read_completion(raw: str, names: Mapping[str, str]) -> Reply:
    """Reads a chat completion; arguments that several calls were merged into are taken apart again."""
    return hosted.readable(lambda: _read_completion(raw, names), raw)


def _read_completion(raw: str, names: Mapping[str, str]) -> Reply:
    body = read_body(raw)
    if body is None:
        return Reply(hosted.UNREADABLE, text=raw[:500])
    # What is billed is told even where there is no answer.
    counts, model = body.get("usage"), str(body.get("model") or "")
    usage = None
    if isinstance(counts, Mapping) and isinstance(counts.get("prompt_tokens"), int):
        usage = Usage(
            counts["prompt_tokens"],
            int(counts.get("completion_tokens") or 0),
            int((counts.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        )
    # Only the first choice is asked for.
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    message = first.get("message")
    if not isinstance(message, Mapping):
        return Reply(hosted.NO_CANDIDATE, usage=usage, model=model)
    said = str(first.get("finish_reason") or "stop")
    finish, text = FINISHES.get(said, said), message.get("content") or ""
    # The calls; one that can't be read spoils the answer.
    calls: list[Call] = []
    if isinstance(text, list):
        text = "\n".join(str(part.get("text") or "") for part in text if isinstance(part, Mapping))
    older, given = message.get("function_call"), message.get("tool_calls") or []
    if isinstance(older, Mapping) and not given:
        given = [{"function": older}]
    for row in given if isinstance(given, list) else [given]:
        found = _calls(row, names)
        if found is None:
            return Reply(hosted.MALFORMED, text=json.dumps(row)[:500], usage=usage, model=model)
        calls += found
    # It says that it has stopped, and yet there is nothing to take.
    if message.get("refusal"):
        finish = "safety"
    if finish == hosted.STOP and not calls and not text:
        finish = hosted.EMPTY
    return hosted.understood(Reply(finish, tuple(calls), text if isinstance(text, str) else "", usage, model), names)


def _calls(row: Any, names: Mapping[str, str]) -> list[Call] | None:
    """The call, or the calls, that one entry holds; None when it can't be read."""
    function = row.get("function") if isinstance(row, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return None
    name, given = function["name"], function.get("arguments")
    rest = json.dumps(given) if isinstance(given, Mapping) else str(given or "{}").strip()
    objects: list[Any] = []
    while rest:
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except ValueError:
            return None
        if isinstance(value, str):  # encoded twice
            try:
                value = json.loads(value)
            except ValueError:
                return None
        if not isinstance(value, Mapping):
            return None
        objects.append(value)
        rest = rest[end:].strip()
    called = [name] * len(objects) if name in names or len(objects) < 2 else _parts(name, list(names), len(objects))
    return (
        None
        if called is None
        else [Call(names.get(part, part), value) for part, value in zip(called, objects, strict=True)]
    )


def _parts(name: str, known: Sequence[str], count: int) -> list[str] | None:
    """The `count` known names that `name` is made of, one after another."""
    if count == 0:
        return [] if not name else None
    for part in known:
        if name.startswith(part):
            rest = _parts(name[len(part) :], known, count - 1)
            if rest is not None:
                return [part, *rest]
    return None


def _fault(status: int, body: str, headers: Mapping[str, str]) -> Fault:
    message = f"{status}: {body[:300]}"
    try:
        hint = float(headers["Retry-After"]) if "Retry-After" in headers else None
    except ValueError:
        hint = None
    if status == 429:
        return Fault(
            hosted.SPEND_CAP if "insufficient_quota" in body or "billing" in body.lower() else hosted.RATE,
            message,
            hint,
        )
    if status in (401, 403, 404):
        return Fault(hosted.DENIED, message)
    if status == 504:
        return Fault(hosted.TIMEOUT, message)
    return Fault(hosted.BUSY if status == 408 or status >= 500 else hosted.REFUSED, message, hint)
