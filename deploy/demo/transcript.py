"""What the demo prints: what was run, by whom, and what came back."""

import json
import os
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from deploy.demo.lab import ALICE, OTHER, PROXY, Lab
from deploy.demo.namespaces import LabError

WIDTH = 116
"""Characters of a line of output; longer ones go on in the next."""

UIDS = {"root": 0, "alice-claude": ALICE, "visitor": OTHER, "egress-proxy": PROXY}


@dataclass(frozen=True, slots=True)
class Result:
    """A command's end. `seconds` is how long it took."""

    output: str
    status: int
    seconds: float

    @property
    def answer(self) -> tuple[int, dict[str, object]]:
        """The HTTP status and the JSON body of what `curl -i` printed: 0, and nothing, where there is none."""
        head, _, body = self.output.replace("\r", "").partition("\n\n")
        words = head.partition("\n")[0].split()
        try:
            decoded = json.loads(body)
        except ValueError:
            decoded = {}
        return int(words[1]) if len(words) > 1 and words[1].isdecimal() else 0, decoded


type Format = Callable[[str], Iterable[str]]
type Checks = Iterator[tuple[bool, str]]


class Scene:
    """Runs commands in the lab and shows them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def step(self, number: int, title: str, play: Callable[[], Checks]) -> bool:
        """Show one step, and tell whether all of its expectations were met."""
        self._print(f"\n{number}. {title}", "1")
        met = True
        try:
            for expected, sentence in play():
                self._check(expected, sentence)
                met = met and expected
        except (LabError, subprocess.TimeoutExpired) as error:
            self._check(False, str(error))
            return False
        return met

    def run(
        self,
        who: str,
        argv: Sequence[str],
        *,
        shown: str | None = None,
        form: Format = str.splitlines,
    ) -> Result:
        """Run a command and show it; `form` makes the lines to show of what it printed."""
        self.show_command(who, shown or shlex.join(argv))
        begun = time.monotonic()
        done = self.lab.run(argv, uid=UIDS[who])
        result = Result(done.stdout + done.stderr, done.returncode, time.monotonic() - begun)
        for line in form(result.output):
            for part in _wrapped(line):
                self._print(f"     {part}", "2")
        if result.status:
            self._print(f"     (exit status {result.status} after {result.seconds:.1f} s)", "2")
        return result

    def egress_policy(self, *arguments: str) -> Result:
        """Run the product's command line as root."""
        argv = [sys.executable, "-m", "egress_policy", *arguments]
        return self.run("root", argv, shown=shlex.join(["egress-policy", *arguments]))

    def curl(
        self, who: str, url: str, *options: str, scope: str | None = None, keys: Iterable[str]
    ) -> Result:
        """Fetch a URL and show the head of the answer, and those keys of its JSON body."""
        header = [] if scope is None else ["-H", f"X-Agent-Scope: {scope}"]
        argv = ["curl", "-sSi", *header, *options, url]
        return self.run(who, argv, form=lambda output: _answer(output, frozenset(keys)))

    def probe(self, who: str, protocol: str, host: str, port: int) -> Result:
        """Try one port (see `probe.py`)."""
        arguments = ["-m", "deploy.demo.probe", protocol, host, str(port)]
        return self.run(who, [sys.executable, *arguments], shown=shlex.join(["python", *arguments]))

    def show_command(self, who: str, command: str) -> None:
        """Show a command that is about to be run."""
        self._print(f"   {who}{'#' if who == 'root' else '$'} {command}", "36")

    def _check(self, expected: bool, sentence: str) -> None:
        self._print(f"   {'✓' if expected else '✗'} {sentence}", "32" if expected else "31;1")

    def _print(self, text: str, colour: str) -> None:
        print(f"\033[{colour}m{text}\033[0m" if self._colours else text.rstrip(), flush=True)


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent="       ", break_on_hyphens=False) or [""]


def lines_with(*words: str) -> Format:
    """Show only the lines that hold one of the words, without what stands around them."""
    return lambda output: (
        line.strip() for line in output.splitlines() if any(word in line for word in words)
    )


def spaced_json(output: str) -> Iterator[str]:
    """Show lines of JSON so that they can be wrapped."""
    for line in output.splitlines():
        try:
            yield json.dumps(json.loads(line), ensure_ascii=False)
        except ValueError:
            yield line


def last_lines(count: int) -> Format:
    """Show only the last lines."""

    def form(output: str) -> Iterable[str]:
        lines = output.splitlines()
        return [*(["…"] if len(lines) > count else []), *lines[-count:]]

    return form


def _answer(output: str, keys: frozenset[str]) -> Iterator[str]:
    head, _, body = output.replace("\r", "").partition("\n\n")
    for line in head.splitlines():
        name = line.partition(":")[0].lower()
        if name == line.lower() or name in {"content-type", "curl"}:
            yield line
    try:
        decoded = json.loads(body)
    except ValueError:
        yield from body.splitlines()
        return
    for key, value in decoded.items():
        if key in keys:
            yield f"  {key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
