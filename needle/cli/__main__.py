"""`needle <command>`: hands over to the command's own module."""

from __future__ import annotations

import importlib
import sys

from needle.cli.say import fail, missing_package

COMMANDS = {
    "train": "train one student, or a sweep of them with -m",
    "evaluate": "judge a checkpoint on a file or a data set",
    "calibrate": "make a checkpoint's confidence the probability that it is right",
    "cascade": "say what it costs and brings to ask elsewhere what a checkpoint isn't sure of",
    "compare": "train a teacher and all arms of a sweep, and write the report",
    "data": "check what training would read, or show a file's records",
    "collect": "have a hosted model write and answer requests for your tools, within a budget",
    "export": "write a checkpoint for onnxruntime, eight bits a weight",
    "label": "write a checkpoint's answers into records, as a teacher's",
    "dashboard": "save the W&B workspace of a project",
    "serve": "answer POST /tool-call, and OpenAI's and Ollama's clients, with a checkpoint",
    "ask": "have MCP servers do what is asked, after showing the calls",
    "mcp": "be an MCP server with one tool in front of other MCP servers",
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        asked = len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help", "help")
        lines = [f"  needle {name:<9} {text}" for name, text in COMMANDS.items()]
        print(
            "usage: needle <command> [group=choice ...] [key=value ...]\n\n"
            + "\n".join(lines)
            + "\n\nneedle <command> --help lists the choices, --cfg job shows the settings.",
            file=sys.stderr if asked else sys.stdout,
        )
        sys.exit(2 if asked else 0)
    command = sys.argv.pop(1)
    try:
        importlib.import_module(f"needle.cli.{command}").main()
    except ModuleNotFoundError as error:
        fail(missing_package(error, command))


if __name__ == "__main__":
    main()
