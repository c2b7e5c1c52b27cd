"""A loopback stand-in for Gemini's REST API: writes requests, answers them by calls, goes wrong on demand, and keeps
the true bill.

    python -m tests.gemini_server --port 0 --faults '{"busy": 0.05, "drop": 0.02}' --seed 3

prints its port and serves until it is killed. GET /bill tells what everything has cost so far, in nanodollars. It knows
the calls that fit a text because it has written the text; of a text that it hasn't written it says that no function
fits.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aiohttp import web

PRICE = (300, 2500)  # nanodollars a token, in and out
FAULTS = (
    "rate", "rate_hint", "busy", "drop", "hang", "malformed_call", "empty", "blocked", "no_candidate", "html",
    "not_json", "no_usage", "merged", "max_tokens", "wrong_value", "wrong_tool",
)  # fmt: skip
NUMBERS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


class Server:
    """`faults` are chances for each request. `spend_cap` is how many requests are answered before the account is
    empty."""

    def __init__(
        self,
        faults: Mapping[str, float] | None = None,
        seed: int = 0,
        delay: float = 0.0,
        spend_cap: int | None = None,
        batch_plan: tuple[str, ...] = (),
    ) -> None:
        assert set(faults or {}) <= set(FAULTS), faults
        self.faults, self.random, self.delay, self.spend_cap = dict(faults or {}), random.Random(seed), delay, spend_cap
        self.bill = 0
        self.seen: Counter[str] = Counter()  # faults given and answers, by name
        self.log: list[str] = []  # what each request was about, in the order of arrival
        self.known: dict[str, list[dict[str, Any]]] = {}  # the calls that fit each text
        self.bodies: list[dict[str, Any]] = []
        self.paths: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.batch_plan = list(batch_plan)  # what becomes of each job: done, partial, expired, torn
        self.wordy = 0
        self.logprobs = False

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        for version in ("v1", "v1beta"):
            app.router.add_post(f"/{version}/models/{{model}}:generateContent", self.generate)
            app.router.add_post(f"/{version}/models/{{model}}:batchGenerateContent", self.create_job)
            app.router.add_get(f"/{version}/batches", self.list_jobs)
            app.router.add_get(f"/{version}/batches/{{name}}", self.get_job)
            app.router.add_post(f"/upload/{version}/files", self.begin_upload)
            app.router.add_post(f"/upload/{version}/data/{{name}}", self.upload)
            app.router.add_get(f"/{version}/files/{{name}}:download", self.download)
        app.router.add_get("/bill", self.account)
        return app

    async def account(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "bill": self.bill,
                "seen": self.seen,
                "requests": len(self.log),
                "log": self.log[int(request.query.get("from", len(self.log))) :],
            }
        )

    # Online

    async def generate(self, request: web.Request) -> web.StreamResponse:
        self.paths[request.path.split("/")[1]] += 1
        body = await request.json()
        if request.headers.get("x-goog-api-key") == "bad":
            return self._error(
                400,
                "INVALID_ARGUMENT",
                "API key not valid. Please pass a valid API key.",
                [{"reason": "API_KEY_INVALID"}],
            )
        self.log.append(identity(body))
        if len(self.bodies) < 50:
            self.bodies.append(body)
        if body["generationConfig"].get("responseLogprobs") and not self.logprobs:
            return self._error(400, "INVALID_ARGUMENT", "Logprobs is not enabled for this model.", [])
        if self.spend_cap is not None and len(self.log) > self.spend_cap:
            return self._error(429, "RESOURCE_EXHAUSTED", "Your project has exceeded its monthly spending cap.", [])
        if self.delay:
            await asyncio.sleep(self.delay)
        fault = self._draw()
        if fault in ("rate", "rate_hint"):
            hint = (
                [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.2s"}]
                if fault == "rate_hint"
                else []
            )
            return self._error(429, "RESOURCE_EXHAUSTED", "Too many requests.", hint)
        if fault == "busy":
            return self._error(503, "UNAVAILABLE", "The model is overloaded.", [])
        answer = self.answer(body, fault)
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "html":
            return web.Response(text="<html>upstream said no</html>", content_type="text/html")
        return web.json_response(answer)

    def _draw(self) -> str | None:
        place = self.random.random()
        for name, chance in self.faults.items():
            if place < chance:
                self.seen[name] += 1
                return name
            place -= chance
        self.seen["fine"] += 1
        return None

    def _error(self, code: int, status: str, message: str, details: list[Any]) -> web.Response:
        return web.json_response(
            {"error": {"code": code, "status": status, "message": message, "details": details}}, status=code
        )

    def answer(self, body: Mapping[str, Any], fault: str | None = None, batch: bool = False) -> dict[str, Any]:
        """The body of an answer; it goes on the bill whatever happens to it on its way."""
        text, tools = asked(body), [row["name"] for row in functions(body)]
        parts: list[dict[str, Any]] = []
        finish = "STOP"
        if tools:
            calls = [call for call in self.known.get(text, ()) if call["name"] in tools]
            if fault == "wrong_tool" and len(tools) > 1:
                calls = [{"name": tools[0], "args": {}}]
            if fault == "wrong_value" and calls:
                calls = [{**call, "args": {name: "something else" for name in call["args"]}} for call in calls]
            if fault == "merged":
                calls = [{"name": tools[0] * 2, "args": {}}]
            parts = [{"functionCall": call} for call in calls] or [{"text": "None of the functions does that."}]
        elif "details" in text or '"task"' in text:
            parts = [
                {
                    "text": (
                        json.dumps({"requests": [self.write(json.loads(line)) for line in text.splitlines()]})
                        if fault != "not_json"
                        else "Sure! Here they are:"
                    )
                }
            ]
        else:
            paths = body["generationConfig"]["responseJsonSchema"]["properties"]
            parts = [
                {"text": json.dumps({path: [f"{path.split('.')[-1]} {word}" for word in NUMBERS] for path in paths})}
            ]
        if fault == "malformed_call":
            parts, finish = [], "MALFORMED_FUNCTION_CALL"
        if fault == "max_tokens":
            parts, finish = parts[:1], "MAX_TOKENS"
        if fault == "empty":
            parts = []
        words = sum(len(json.dumps(part)) for part in parts) // 4 + 1
        used = {
            "promptTokenCount": len(json.dumps(body)) // 5,
            "candidatesTokenCount": words,
            "thoughtsTokenCount": 7,
            "totalTokenCount": 0,
        }
        self.bill += round((used["promptTokenCount"] * PRICE[0] + (words + 7) * PRICE[1]) * (0.5 if batch else 1))
        answer: dict[str, Any] = {
            "candidates": [
                {
                    "content": {"role": "model", "parts": parts},
                    "finishReason": finish,
                    "index": 0,
                    **({"avgLogprobs": -0.1} if self.logprobs else {}),
                }
            ],
            "modelVersion": "gemini-3.5-flash-lite-001",
        }
        if fault != "no_usage":
            answer["usageMetadata"] = used
        if fault == "blocked":
            answer["candidates"], answer["promptFeedback"] = [], {"blockReason": "PROHIBITED_CONTENT"}
            del answer["candidates"]
        if fault == "no_candidate":
            answer["candidates"] = []
        return snake(answer) if self.random.random() < 0.5 else answer

    def write(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """A request that holds every detail, and like no other."""
        self.wordy += 1
        start = f"{task['person']} here number {self.wordy},"
        if isinstance(task["wants"], str):
            text, calls = f"{start} tell me about {' and '.join(sorted({NUMBERS[self.wordy % 10], task['style']}))}", []
        else:
            wants, calls = [], []
            for want in task["wants"]:
                said = ", ".join(f"{name.replace('_', ' ')} {spoken(value)}" for name, value in want["details"].items())
                wants.append(f"{re.sub('[^a-z ]', ' ', want['what'].lower())[:60]} with {said or 'nothing more'}")
                calls.append({"name": want["tool"], "args": want["details"]})
            text = f"{start} {' and also '.join(wants)}"
            calls = [] if "never_mention" in task else calls
        self.known[text] = calls
        return {"task": task["task"], "text": text}

    # Batches

    async def begin_upload(self, request: web.Request) -> web.Response:
        name = f"file{len(self.files)}"
        self.files[name] = b""
        version = request.path.split("/")[2]
        return web.json_response(
            {},
            headers={
                "X-Goog-Upload-URL": str(request.url.origin()) + f"/upload/{version}/data/{name}",
                "X-Goog-Upload-Status": "active",
            },
        )

    async def upload(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.files[name] += await request.read()
        last = "finalize" in request.headers.get("X-Goog-Upload-Command", "")
        found = (
            {
                "file": {
                    "name": f"files/{name}",
                    "uri": f"files/{name}",
                    "mimeType": "application/jsonl",
                    "state": "ACTIVE",
                }
            }
            if last
            else {}
        )
        return web.json_response(found, headers={"X-Goog-Upload-Status": "final" if last else "active"})

    async def create_job(self, request: web.Request) -> web.Response:
        fault = self._draw() if self.faults.get("busy") else None
        if fault == "busy":
            return self._error(503, "UNAVAILABLE", "The model is overloaded.", [])
        batch = (await request.json())["batch"]
        name, plan = f"job{len(self.jobs)}", self.batch_plan.pop(0) if self.batch_plan else "done"
        source = batch["inputConfig"]["fileName"].removeprefix("files/")
        self.jobs[name] = {"label": batch["displayName"], "source": source, "plan": plan, "looks": 0, "results": None}
        return web.json_response(self._job(name))

    async def list_jobs(self, request: web.Request) -> web.Response:
        return web.json_response({"operations": [self._job(name) for name in reversed(self.jobs)]})

    async def get_job(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["name"]]
        job["looks"] += 1
        if job["looks"] >= 2 and job["results"] is None:
            self._work(job)
        return web.json_response(self._job(request.match_info["name"]))

    def _work(self, job: dict[str, Any]) -> None:
        rows = [json.loads(line) for line in self.files[job["source"]].splitlines()]
        self.log += [identity(row["request"]) for row in rows]
        done = (
            rows
            if job["plan"] in ("done", "torn")
            else rows[: len(rows) // 2]
            if job["plan"] == "partial"
            else rows[: len(rows) // 3]
        )
        lines = [json.dumps({"key": row["key"], "response": self.answer(row["request"], batch=True)}) for row in done]
        lines += (
            [json.dumps({"key": row["key"], "error": {"code": 13, "message": "internal"}}) for row in rows[len(done) :]]
            if job["plan"] == "partial"
            else []
        )
        data = "\n".join(lines).encode()
        job["results"] = f"results-{job['label']}-{len(self.files)}"
        self.files[job["results"]] = data[: len(data) * 2 // 3] if job["plan"] == "torn" else data

    def _job(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        state = "BATCH_STATE_RUNNING"
        if job["results"] is not None:
            state = {"expired": "BATCH_STATE_EXPIRED"}.get(job["plan"], "BATCH_STATE_SUCCEEDED")
        metadata: dict[str, Any] = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "displayName": job["label"],
            "state": state,
            "name": f"batches/{name}",
        }
        found: dict[str, Any] = {"name": f"batches/{name}", "metadata": metadata}
        if job["results"] is not None:
            metadata["output"] = {"responsesFile": f"files/{job['results']}"}
            found |= {"done": True, "response": {"responsesFile": f"files/{job['results']}"}}
        return found

    async def download(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["name"]])


def asked(body: Mapping[str, Any]) -> str:
    return str(body["contents"][0]["parts"][0]["text"])


def functions(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for tool in body.get("tools", ()) for row in tool["functionDeclarations"]]


def identity(body: Mapping[str, Any]) -> str:
    """What a request is about: its text and its tools, in their order."""
    return name_of(asked(body), [row["name"] for row in functions(body)])


def name_of(text: str, tools: list[str]) -> str:
    return hashlib.sha256(json.dumps([text, tools]).encode()).hexdigest()[:16]


def spoken(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return " and ".join(spoken(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {spoken(item)}" for name, item in value.items())
    return str(value)


def snake(value: Any) -> Any:
    """The same answer in the other spelling; what a call holds is the user's and stays as it is."""
    if isinstance(value, list):
        return [snake(item) for item in value]
    if isinstance(value, dict):
        return {
            re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", key): item if key == "args" else snake(item)
            for key, item in value.items()
        }
    return value


async def serve(server: Server, port: int = 0) -> tuple[web.AppRunner, str]:
    """Starts serving; the runner, to clean up, and the base URL."""
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", type=json.loads, default={})
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    _, url = await serve(Server(options.faults, options.seed, options.delay), options.port)
    print(url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
