"""A command in a terminal of its own, as a person at a keyboard has it."""

import os
import pty
import re
import select
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

PATIENCE = 200.0  # seconds for each thing that is waited for: a virtual environment is made meanwhile
ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*\x07?|[78])")


class Terminal:
    """A running command, what it has shown so far, and keys to type."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._shown = b""
        self._read_to = 0
        self._process, self._keyboard = pty.fork()
        if not self._process:
            os.chdir(folder)
            os.execvpe(words[0], list(words), dict(environment))  # noqa: S606 - our own words

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
        os.close(self._keyboard)

    @property
    def shown(self) -> str:
        """All that stood on the screen, without its colours."""
        return ESCAPES.sub("", self._shown.decode(errors="replace"))

    def answer(self, question: str, typed: str) -> None:
        """Wait for a question that was not answered yet, and type the answer."""
        deadline = time.monotonic() + PATIENCE
        while question not in self.shown[self._read_to :]:
            assert time.monotonic() < deadline, f"`{question}` was not asked: {self.shown}"
            assert self._more(), f"it ended before `{question}` was asked: {self.shown}"
        while self._more(within=0.3):  # a prompt reads the keyboard once it is drawn
            pass
        self._read_to = len(self.shown)
        os.write(self._keyboard, f"{typed}\r".encode())

    def end(self) -> int:
        """Wait for the end, and return the exit status."""
        deadline = time.monotonic() + PATIENCE
        while self._more():
            assert time.monotonic() < deadline, f"it did not end: {self.shown}"
        process, self._process = self._process, 0
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def _more(self, within: float = 1.0) -> bool:
        """Take what is shown next; tell whether there was something, or, after a long wait, may be."""
        if not select.select([self._keyboard], [], [], within)[0]:
            return within >= 1
        try:
            said = os.read(self._keyboard, 65536)
        except OSError:  # as a terminal says that its program has ended
            return False
        self._shown += said
        return bool(said)
