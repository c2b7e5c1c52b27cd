"""Gemini as a teacher, through `google-genai`: the only file that imports it.

Retries, pacing and money belong to the caller: the client is told to try once. It returns the body as it came, so that
nothing that the service said is lost on its way into the store. See
https://ai.google.dev/gemini-api/docs/function-calling and https://ai.google.dev/gemini-api/docs/batch-mode.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import httpx2
from google import genai
from google.auth import exceptions as auth
from google.genai import errors, types

from needle.collect.services import hosted
from needle.collect.services.hosted import Ask, Batches, Fault, Job, Reply, Usage, read_body, sent_names
from needle.text.records import Call

VERSION = "v1beta"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,63}")  # what a function may be called
SENT = {
    "type",
    "format",
    "title",
    "description",
    "enum",
    "items",
    "prefixItems",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "anyOf",
    "properties",
    "required",
}
STATES = {
    "JOB_STATE_SUCCEEDED": "done", "JOB_STATE_PARTIALLY_SUCCEEDED": "done", "JOB_STATE_FAILED": "failed",
        "JOB_STATE_CANCELLED": "failed", "JOB_STATE_EXPIRED": "expired",
}  # fmt: skip
HARMS = ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")


class Gemini:
    """One Gemini model, made where an event loop runs. `vertex` is (project, location) for Vertex AI, which then takes
    no key."""

    provider = "google"

    def __init__(
        self,
        model: str,
        key: str | None,
        base_url: str | None = None,
        timeout: float = 60.0,
        vertex: tuple[str, str] | None = None,
        connections: int = 256,
        version: str = VERSION,
    ) -> None:
        self.model = model
        self.session, self.timeout = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)), timeout
        options = types.HttpOptions(
            base_url=base_url,
            api_version=None if vertex else version,
            timeout=int(timeout * 1000),
            retry_options=types.HttpRetryOptions(
                attempts=1
            ),  # without it the client repeats a request whose connection was lost, and pays twice
            aiohttp_client=self.session,
        )
        if vertex:
            self.client = genai.Client(vertexai=True, project=vertex[0], location=vertex[1], http_options=options)
        else:
            self.client = genai.Client(api_key=key, vertexai=False, http_options=options)
        self.batches: Batches | None = None if vertex else GeminiBatches(self)

    async def ask(self, ask: Ask) -> str:
        """The answer's body. Raises `Fault`."""
        try:
            async with asyncio.timeout(self.timeout + 5):
                response = await self.client.aio.models.generate_content(
                    model=ask.model, contents=ask.text, config=_config(ask)
                )
        except Exception as error:
            raise fault(error) from error
        http = response.sdk_http_response
        body = http.body if http is not None else None
        return body if isinstance(body, str) else ""

    def read(self, ask: Ask, raw: str) -> Reply:
        return hosted.in_words_of(read_answer(raw, sent_names(ask.tools, NAME)), ask.tools)

    async def close(self) -> None:
        await self.client.aio.aclose()
        await self.session.close()


class GeminiBatches:
    """The Batch API in file mode: half the price, a day's patience."""

    def __init__(self, teacher: Gemini) -> None:
        self.teacher = teacher
        self.client = teacher.client.aio

    async def create(self, label: str, asks: Sequence[Ask]) -> Job:
        """Uploads the requests and starts a job of this display name. Raises `Fault`."""
        lines = "".join(
            json.dumps({"key": ask.key, "request": rest_body(ask)}, ensure_ascii=False) + "\n" for ask in asks
        )
        try:
            stored = await self.client.files.upload(
                file=io.BytesIO(lines.encode()),
                config=types.UploadFileConfig(display_name=label, mime_type="application/jsonl"),
            )
            job = await self.client.batches.create(
                model=self.teacher.model, src=str(stored.name), config=types.CreateBatchJobConfig(display_name=label)
            )
        except Exception as error:
            raise fault(error) from error
        return _job(job)

    async def find(self, label: str) -> Job | None:
        """The newest job of this display name: what a crash may have left behind."""
        try:
            async for job in await self.client.batches.list(config=types.ListBatchJobsConfig(page_size=100)):
                if job.display_name == label:
                    return _job(job)
        except Exception as error:
            raise fault(error) from error
        return None

    async def look(self, job: Job) -> Job:
        try:
            return _job(await self.client.batches.get(name=job.name))
        except Exception as error:
            raise fault(error) from error

    async def results(self, job: Job) -> Mapping[str, str | None]:
        """Answers by key, as bodies; None for requests that the job failed on."""
        if job.results is None:
            return {}
        try:
            data = await self.client.files.download(file=job.results)
        except Exception as error:
            raise fault(error) from error
        found: dict[str, str | None] = {}
        for line in data.decode("utf-8", "replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # a file that was cut short ends in half a line; nobody knows of its request
            if isinstance(row, Mapping) and isinstance(row.get("key"), str):
                response = row.get("response")
                found[row["key"]] = json.dumps(response, ensure_ascii=False) if isinstance(response, Mapping) else None
        return found


def _job(job: types.BatchJob) -> Job:
    state = STATES.get(job.state.value if job.state else "", "running")
    return Job(str(job.name), str(job.display_name or ""), state, job.dest.file_name if job.dest else None)


def rest_body(ask: Ask) -> dict[str, Any]:
    """The request in the REST API's words, for a line of a batch."""
    generation: dict[str, Any] = {"maxOutputTokens": ask.max_tokens}
    if ask.schema is not None:
        generation |= {"responseMimeType": "application/json", "responseJsonSchema": sent_schema(ask.schema)}
    if ask.thinking:
        generation["thinkingConfig"] = {"thinkingLevel": ask.thinking.upper()}
    if ask.logprobs:
        generation |= {"responseLogprobs": True, "logprobs": ask.logprobs}
    body: dict[str, Any] = {
        "contents": [{"role": "user", "parts": [{"text": ask.text}]}],
        "systemInstruction": {"parts": [{"text": ask.system}]},
        "generationConfig": generation,
        "safetySettings": [{"category": f"HARM_CATEGORY_{harm}", "threshold": "BLOCK_NONE"} for harm in HARMS],
    }
    if ask.tools:
        body["tools"] = [{"functionDeclarations": _declarations(ask)}]
        body["toolConfig"] = {"functionCallingConfig": {"mode": "VALIDATED"}}
    return body


def _config(ask: Ask) -> types.GenerateContentConfig:
    """Everything but the contents goes as it would in a batch, so that there is one way to write a request."""
    body = {key: value for key, value in rest_body(ask).items() if key != "contents"}
    return types.GenerateContentConfig(
        should_return_http_response=True,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        http_options=types.HttpOptions(extra_body=body),
    )


def _declarations(ask: Ask) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "description": tool.description or tool.name,
            "parametersJsonSchema": sent_schema(tool.parameters),
        }
        for name, tool in zip(sent_names(ask.tools, NAME), ask.tools, strict=True)
    ]


def sent_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a JSON Schema that the service takes; answers are judged by the whole one."""
    out = {key: value for key, value in schema.items() if key in SENT}
    if "const" in schema:
        out["enum"] = [schema["const"]]
    if isinstance(out.get("properties"), Mapping):
        out["properties"] = {name: sent_schema(sub) for name, sub in out["properties"].items()}
    if isinstance(out.get("items"), Mapping):
        out["items"] = sent_schema(out["items"])
    elif "items" in out:
        del out["items"]
    for key in ("anyOf", "prefixItems"):
        if isinstance(out.get(key), list):
            out[key] = [sent_schema(sub) for sub in out[key]]
    return out


def read_answer(raw: str, names: Mapping[str, str]) -> Reply:
    """Reads a body in either spelling (finishReason, finish_reason). `names` are the tools' names by the names they
    were sent under."""
    return hosted.readable(lambda: _read_answer(raw, names), raw)


def _read_answer(raw: str, names: Mapping[str, str]) -> Reply:
    body = read_body(raw)
    if body is None:
        return Reply(hosted.UNREADABLE, text=raw[:500])
    # What is billed is told even where there is no answer.
    usage, model = _usage(_get(body, "usageMetadata")), str(_get(body, "modelVersion") or "")
    blocked = _get(_get(body, "promptFeedback"), "blockReason")
    candidates = _get(body, "candidates")
    if blocked:
        return Reply(hosted.BLOCKED, text=str(blocked), usage=usage, model=model)
    if not isinstance(candidates, list) or not candidates or not isinstance(candidates[0], Mapping):
        return Reply(hosted.NO_CANDIDATE, usage=usage, model=model)
    # Only the first candidate is asked for; thoughts are no part of what it says.
    first = candidates[0]
    finish = str(_get(first, "finishReason") or "finish_reason_missing").lower()
    parts = _get(_get(first, "content"), "parts")
    spoken = (
        [part for part in parts if isinstance(part, Mapping) and not part.get("thought")]
        if isinstance(parts, list)
        else []
    )
    text = "".join(part["text"] for part in spoken if isinstance(part.get("text"), str))
    # The calls, under the names that the tools really have.
    calls = []
    for part in spoken:
        call = _get(part, "functionCall")
        if isinstance(call, Mapping):
            arguments = call.get("args") or {}
            if isinstance(arguments, str) and (body := read_body(arguments)) is not None:
                arguments = body
            if not isinstance(call.get("name"), str) or not isinstance(arguments, Mapping):
                return Reply(hosted.MALFORMED, text=json.dumps(call)[:500], usage=usage, model=model)
            calls.append(Call(names.get(call["name"], call["name"]), _whole(arguments)))
    # It says that it has stopped, and yet there is nothing to take.
    if finish == hosted.STOP and not calls and not text:
        finish = hosted.EMPTY
    if finish == hosted.STOP and any(_merged(call.name, names) for call in calls):
        finish = "merged_calls"
    if finish == hosted.MALFORMED and not calls and not text:  # what it tried to say stands in the message
        text = str(_get(first, "finishMessage") or "").partition(":")[2].strip()
    logprob = _get(first, "avgLogprobs")
    sure = float(logprob) if isinstance(logprob, int | float) else None
    return hosted.understood(Reply(finish, tuple(calls), text, usage, model, sure), names)


def _whole(value: Any) -> Any:
    """Protocol buffers know one kind of number; 5.0 was 5."""
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _merged(name: str, names: Mapping[str, str]) -> bool:
    """Whether a name is made of several tools' names: parallel calls that became one, whose arguments can't be told
    apart."""
    if name in names.values():
        return False
    parts = "|".join(sorted((re.escape(other) for other in {*names, *names.values()}), key=len, reverse=True))
    return bool(parts) and re.fullmatch(f"(?:{parts}){{2,}}", name) is not None


def _usage(found: Any) -> Usage | None:
    counts = [
        _get(found, name)
        for name in (
            "promptTokenCount",
            "candidatesTokenCount",
            "thoughtsTokenCount",
            "toolUsePromptTokenCount",
            "cachedContentTokenCount",
        )
    ]
    if counts[0] is None:
        return None
    prompt, said, thought, tools, cached = (int(count or 0) for count in counts)
    return Usage(prompt + tools, said + thought, cached)


def _get(body: Any, name: str) -> Any:
    """A field in camel or snake case; None where there is none."""
    if not isinstance(body, Mapping):
        return None
    return body.get(name, body.get(re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name)))


def fault(error: Exception) -> Fault:
    """What a failed request means for the caller. Errors of ours, which no server caused, go on as they are."""
    if isinstance(error, errors.APIError):
        return _api_fault(error)
    message = f"{type(error).__name__}: {error}"[:300]
    if isinstance(error, auth.DefaultCredentialsError | auth.RefreshError):
        return Fault(hosted.DENIED, message)
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return Fault(hosted.TIMEOUT, message)
    if isinstance(error, aiohttp.ClientError | httpx2.TransportError | auth.TransportError | OSError):
        return Fault(hosted.CONNECTION, message)
    raise error


def _api_fault(error: errors.APIError) -> Fault:
    text = json.dumps(error.details) if isinstance(error.details, dict | list) else str(error.details)
    message, lower = f"{error.code} {error.status or ''}: {error.message or text}"[:500], text.lower()
    if error.code == 429:
        if re.search(r"spend(ing)?[ _-]?(cap|limit)|billing", lower):
            return Fault(hosted.SPEND_CAP, message)
        if "perday" in lower:
            return Fault(hosted.DAILY_QUOTA, message)
        return Fault(hosted.RATE, message, _hint(error, text))
    if error.code in (401, 403, 404) or "api_key_invalid" in lower or "api key not valid" in lower:
        return Fault(hosted.DENIED, message)
    if error.code == 504:
        return Fault(hosted.TIMEOUT, message)
    if error.code == 408 or error.code >= 500:
        return Fault(hosted.BUSY, message, _hint(error, text))
    return Fault(hosted.REFUSED, message)


def _hint(error: errors.APIError, text: str) -> float | None:
    """Seconds from `RetryInfo` in the details, or from the header `Retry-After`."""
    found = re.search(r'"retry_?[dD]elay": *"([\d.]+)s"', text)
    headers = getattr(error.response, "headers", None) or {}
    said = found.group(1) if found else headers.get("Retry-After") or headers.get("retry-after")
    try:
        return float(said) if said is not None else None
    except ValueError:
        return None
