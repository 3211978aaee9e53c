"""Interrupt a `pulumi up` at a given moment, repair it as the how-to says, and compare the account with the program."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from sandbox import Sandbox
from tests.pulumi_kit import Project, Running, credentials
from tests.trouble import Strike, Trouble, TroubledCallFire, When


class Moment(Enum):
    """When the operation is interrupted."""

    BEFORE_REQUEST = "before the request"
    BEFORE_ANSWER = "committed, before the answer"
    BEFORE_STATE = "answered, before the state is written"


class End(Enum):
    """How."""

    KILL = "kill -9 of the process group"
    CTRL_C = "Ctrl-C"
    CTRL_C_TWICE = "Ctrl-C twice"


@dataclass(frozen=True)
class Result:
    """What stood on the account after the repair.

    Attributes:
        orphans: subscriptions that no resource holds.
        missing: declared and not there.
        checkpoint_mended: whether the kill had left the file backend's checkpoint empty.
    """

    orphans: int
    missing: int
    checkpoint_mended: bool = False

    @property
    def exact(self) -> bool:
        """Whether the account holds exactly what is declared."""
        return not self.orphans and not self.missing


COUNT = 3

_OPERATIONS = {
    "create": ("CreateSubscription", {"COUNT": str(COUNT)}),
    "update": ("UpdateSubscription", {"COUNT": str(COUNT), "ENABLED": "false"}),
    "delete": ("DeleteSubscription", {"COUNT": "1"}),
}


class Crashes:
    """A project in front of a CallFire that holds requests.

    Args:
        project: with an empty stack.
        sandbox: running.
        callfire: in front of it.
    """

    def __init__(self, project: Project, sandbox: Sandbox, callfire: TroubledCallFire) -> None:
        self.project = project
        self.callfire = callfire
        self._sandbox = sandbox
        project.environ |= credentials(sandbox, callfire.url)
        self._full = False
        self._pristine = project.folder / "pristine"
        shutil.copytree(project.state, self._pristine)

    def interrupt(self, operation: str, moment: Moment, end: End) -> Result:
        """Interrupt one operation of an `up` at a moment, and repair.

        A create begins with an empty account. An update and a delete need what is there: what the one before left is
        good, as it has been repaired.
        """
        name, environ = _OPERATIONS[operation]
        if operation == "create":
            self.start_anew()
        elif not self._full:
            self.project.up(COUNT=str(COUNT))
        when = When.BEFORE if moment is Moment.BEFORE_REQUEST else When.AFTER
        strike = self.callfire.strike(name, when, Trouble.HOLD)
        with self.project.running("up", "--yes", "--skip-preview", **environ) as running:
            strike.wait()
            _ENDS[end](running, strike, moment)
            if end is not End.CTRL_C:
                running.wait_for_providers_end()
        self.callfire.forget()
        return self.repair(**environ)

    def kill_at_random(
        self, count: int, longest: float, rng: random.Random, note: Callable[[], None] = lambda: None
    ) -> Result:
        """Kill an `up` of `count` subscriptions after a random time of up to `longest` seconds, and repair."""
        self.start_anew()
        environ = {"COUNT": str(count)}
        with self.project.running("up", "--yes", "--skip-preview", **environ) as running:
            time.sleep(rng.uniform(0.2, longest))
            running.kill()
            note()
            running.wait_for_providers_end()
        return self.repair(**environ)

    def repair(self, **environ: str) -> Result:
        """`pulumi cancel`, `up`, look. A lock is there or not, so cancel may fail."""
        mended = self.project.mend_checkpoint()
        self.project.pulumi("cancel", "--yes", check=False)
        self.project.up(check=True, **environ)
        self._full = environ == _OPERATIONS["create"][1]
        return self._compare(environ, mended=mended)

    def _compare(self, environ: dict[str, str], *, mended: bool = False) -> Result:
        """Compare the account with the program and the state."""
        enabled = environ.get("ENABLED", "true") == "true"
        declared = {f"https://mail.example.com/postback/{n:032d}" for n in range(int(environ["COUNT"]))}
        held = self._sandbox.subscriptions()
        ids = set(self.project.ids())
        good = {s["endpoint"] for s in held if s["id"] in ids and s["enabled"] is enabled and s["endpoint"] in declared}
        return Result(
            orphans=len(held) - len(good),
            missing=len(declared - good) + len(ids - {s["id"] for s in held}),
            checkpoint_mended=mended,
        )

    def start_anew(self) -> None:
        """Empty the account and the stack."""
        self._full = False
        self._sandbox.reset()
        shutil.rmtree(self.project.state)
        shutil.copytree(self._pristine, self.project.state)


def _kill(running: Running, strike: Strike, moment: Moment) -> None:
    if moment is Moment.BEFORE_STATE:
        running.freeze()
        strike.release()
        strike.wait_for_answer()
    running.kill()
    strike.release(drop=moment is not Moment.BEFORE_STATE)


def _interrupt(running: Running, strike: Strike, moment: Moment) -> None:
    running.interrupt()
    strike.release(drop=moment is not Moment.BEFORE_STATE)
    running.wait()


def _interrupt_twice(running: Running, strike: Strike, moment: Moment) -> None:
    running.interrupt()
    while not running.ends_within(0.2):
        running.interrupt()
    strike.release(drop=moment is not Moment.BEFORE_STATE)


_ENDS: dict[End, Callable[[Running, Strike, Moment], None]] = {
    End.KILL: _kill,
    End.CTRL_C: _interrupt,
    End.CTRL_C_TWICE: _interrupt_twice,
}
