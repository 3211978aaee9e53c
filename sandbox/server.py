"""A running sandbox: the one place where its parts are put together, in a thread with an event loop of its own."""

import asyncio
import concurrent.futures
import contextlib
import errno
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import uvloop
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from sandbox.control import ControlApi
from sandbox.emulated import EmulatedApi
from sandbox.errors import PortInUseError, SandboxError, StoppedError
from sandbox.guard import LOOPBACK_NAMES, SameOrigin
from sandbox.http_server import HttpServer, answer_nobody
from sandbox.page import Page
from sandbox.simulation import LOGIN, PASSWORD, Document, Simulation
from sandbox.smtp_server import SmtpServer
from sandbox.state import StateFile, load_seed

T = TypeVar("T")

HTTP_PORT = 8700
SMTP_PORT = 8725


class Sandbox:
    """CallFire and a mailbox, from `start` to `stop` or as a context manager. Any thread may call its methods.

    Args:
        port: of HTTP; 0 takes a free one.
        smtp_port: of the mailbox; 0 takes a free one.
        host: the address to listen on. Nothing here is protected: leave it on loopback unless you mean it.
        login: of the default account.
        password: of the default account.
        seed: what there is at the start and after each reset: a document as `POST /control/seed` takes it, the path
            of a JSON file, or "demo".
        state_file: keeps accounts, subscriptions, quirks and ids over a restart; made if it does not exist.
        postback_timeout: seconds that an endpoint has to answer a postback.

    Attributes:
        url: where HTTP listens, without a trailing slash.
        wsdl: where the WSDL of API 1.1 is.
        login: as given.
        password: as given.
        smtp_port: where the mailbox listens.
    """

    def __init__(  # noqa: PLR0913 - keyword arguments, each with a default
        self,
        *,
        port: int = 0,
        smtp_port: int = 0,
        host: str = "127.0.0.1",
        login: str = LOGIN,
        password: str = PASSWORD,
        seed: str | Path | Mapping[str, object] | None = None,
        state_file: str | Path | None = None,
        postback_timeout: float = 30.0,
    ) -> None:
        self.login = login
        self.password = password
        self.url = ""
        self.wsdl = ""
        self.smtp_port = smtp_port
        self._host = host
        self._ports = (port, smtp_port)
        self._seed = load_seed(seed)
        self._state_file = StateFile(Path(state_file)) if state_file else None
        self._postback_timeout = postback_timeout
        self._running: _Running | None = None

    def start(self) -> Self:
        """Listen; returns when everything answers.

        Raises:
            PortInUseError: names the port.
            SandboxError: cannot listen there, the seed or the state file is wrong, or it runs already.
        """
        if self._running:
            raise SandboxError(f"the sandbox runs already, at {self.url}")
        with contextlib.ExitStack() as on_failure:
            http = on_failure.enter_context(_listen(self._host, self._ports[0], "--port"))
            smtp = on_failure.enter_context(_listen(self._host, self._ports[1], "--smtp-port"))
            name = f"[{self._host}]" if ":" in self._host else self._host
            self.url = f"http://{name}:{http.getsockname()[1]}"
            self.wsdl = f"{self.url}/api/1.1/wsdl/callfire-service-http-soap12.wsdl"
            self.smtp_port = smtp.getsockname()[1]
            running = _Running(self._make_simulation, self._make_application, self._state_file, http, smtp)
            running.start()
            self._running = running
            on_failure.pop_all()
        return self

    def stop(self) -> None:
        """Stop listening and drop everything that is under way; does nothing if it does not run.

        Raises:
            SandboxError: the state file could not be written at the end.
        """
        running, self._running = self._running, None
        if running:
            running.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def about(self) -> Document:
        """The addresses and the default account, as `--json` and /healthz give them."""
        return {
            "service": "callfire-sandbox",
            "pid": os.getpid(),
            "url": self.url,
            "wsdl": self.wsdl,
            "login": self.login,
            "password": self.password,
            "smtp_port": self.smtp_port,
        }

    # Events

    def send_text(
        self, message: str, from_number: str = "18185551212", to_number: str = "18186469991", **more: object
    ) -> Document:
        """A text arrives; every matching subscription gets its postback.

        Args:
            message: what it says.
            from_number: who sent it.
            to_number: the account's number.
            more: `id`, `created`, `inbound`, `batch_id`, `broadcast_id`, `account`, as in `POST /control/texts`.

        Returns:
            The text, with the ids of its `postbacks`.
        """
        document = {"from": from_number, "to": to_number, "message": message, **more}
        return self._do(lambda simulation: simulation.send_text(document))

    def make_call(self, from_number: str = "18185551212", to_number: str = "18186469991", **more: object) -> Document:
        """A phone call has ended; `more` is as in `POST /control/calls`. Returns as `send_text` does."""
        document = {"from": from_number, "to": to_number, **more}
        return self._do(lambda simulation: simulation.make_call(document))

    def run_campaign(self, change: str = "FINISHED", **more: object) -> Document:
        """A campaign has started, stopped or finished; `more` is as in `POST /control/campaigns`."""
        return self._do(lambda simulation: simulation.run_campaign({"change": change, **more}))

    def events(self) -> list[Document]:
        """Texts, calls and campaigns, oldest first."""
        return self._do(lambda simulation: [event.as_json() for event in simulation.events.newest()])

    def postbacks(self) -> list[Document]:
        """The delivery log, oldest first."""
        return self._do(lambda simulation: [postback.as_json() for postback in simulation.sender.log.newest()])

    def wait_for_postback(self, after: int = 0, timeout: float = 10.0) -> Document:
        """The oldest postback with an id above `after` that is over: answered, failed or lost.

        Raises:
            WaitTimeoutError: none was within `timeout` seconds.
        """
        return self._await(lambda simulation: simulation.wait_for_postback(after, timeout))

    def resend(self, postback: int) -> Document:
        """Post once more what a postback of the log said."""
        return self._do(lambda simulation: simulation.resend(postback))

    # Accounts and subscriptions

    def add_account(self, login: str, password: str) -> Document:
        """A further account, which sees nothing of the others."""
        return self._do(lambda simulation: simulation.add_account({"login": login, "password": password}))

    def subscriptions(self, account: str | None = None) -> list[Document]:
        """All fields of the subscriptions of one account or, with None, of all accounts; oldest first."""
        return self._do(lambda simulation: simulation.subscriptions(account))

    def create_subscription(self, **fields: object) -> Document:
        """A subscription made without SOAP; `fields` are as in `POST /control/subscriptions`."""
        return self._do(lambda simulation: simulation.create_subscription(fields))

    def change_subscription(self, ident: int | str, **fields: object) -> Document:
        """Change a subscription behind its owner's back; a filter is replaced as a whole."""
        return self._do(lambda simulation: simulation.change_subscription(int(ident), fields))

    def delete_subscription(self, ident: int | str) -> Document:
        """Remove a subscription behind its owner's back."""
        return self._do(lambda simulation: simulation.delete_subscription(int(ident)))

    def requests(self) -> dict[str, int]:
        """How many SOAP calls there were, by operation; an operation that was never called is left out."""
        return self._do(lambda simulation: dict(simulation.calls.counts))

    def request_log(self) -> list[Document]:
        """The last SOAP calls in full, oldest first."""
        return self._do(lambda simulation: [call.as_json() for call in simulation.calls.calls.newest()])

    # Mail

    def mails(self) -> list[Document]:
        """All mails, oldest first."""
        return self._do(lambda simulation: [mail.as_json() for mail in simulation.mailbox.mails.newest()])

    def threads(self) -> list[Document]:
        """The mails by conversation, the newest conversation first."""
        return self._do(lambda simulation: simulation.thread_list())

    def wait_for_mail(self, after: int = 0, timeout: float = 10.0) -> Document:
        """The oldest mail with an id above `after`.

        Raises:
            WaitTimeoutError: none came within `timeout` seconds.
        """
        return self._await(lambda simulation: simulation.wait_for_mail(after, timeout))

    def clear_mails(self) -> None:
        """Throw all mails away."""
        self._do(lambda simulation: simulation.mailbox.clear())

    # The sandbox as a whole

    def trouble(self, kind: str, **fields: object) -> Document:
        """Make something go wrong: once, unless `times` or `probability` say otherwise; see `POST /control/trouble`."""
        return self._do(lambda simulation: simulation.add_trouble({"kind": kind, **fields}))

    def clear_trouble(self) -> None:
        """Take all trouble back."""
        self._do(lambda simulation: simulation.remove_trouble())

    def set_quirks(self, **quirks: bool) -> Document:
        """Switch what is not known about CallFire: `dedupe_request_ids`, `update_replaces_filter`."""
        return self._do(lambda simulation: simulation.set_quirks(quirks))

    def plant(self, seed: str | Path | Mapping[str, object]) -> Document:
        """Add the accounts, subscriptions and past texts of a seed."""
        document = load_seed(seed)
        return self._do(lambda simulation: simulation.plant(document))

    def reset(self) -> None:
        """Back to the beginning: the default account and the seed, ids from the start."""
        self._await(Simulation.reset)

    def _do(self, work: Callable[[Simulation], T]) -> T:
        async def do(simulation: Simulation) -> T:
            return work(simulation)

        return self._await(do)

    def _await(self, work: Callable[[Simulation], Awaitable[T]]) -> T:
        if self._running is None:
            raise SandboxError("the sandbox is not running; start it, or use it as a context manager")
        return self._running.call(work)

    def _make_simulation(self) -> Simulation:
        return Simulation(self.login, self.password, self._postback_timeout, self._seed)

    def _make_application(self, simulation: Simulation) -> ASGIApp:
        """Everything that HTTP shows: the emulated API, the control API, the page, each knowing only the simulation."""
        emulated, control, page = EmulatedApi(simulation), ControlApi(simulation, self.about()), Page(simulation)
        routes = [*emulated.routes(), *control.routes(), *page.routes()]
        application = Starlette(routes=routes, exception_handlers={ClientDisconnect: answer_nobody})
        loopback = self._host in LOOPBACK_NAMES or self._host.startswith("127.")
        return SameOrigin(application, LOOPBACK_NAMES | {self._host} if loopback else None)


class _Running:
    """The thread of a sandbox that has been started, and what runs in it."""

    def __init__(
        self,
        make_simulation: Callable[[], Simulation],
        make_application: Callable[[Simulation], ASGIApp],
        state_file: StateFile | None,
        http: socket.socket,
        smtp: socket.socket,
    ) -> None:
        self._make_simulation = make_simulation
        self._make_application = make_application
        self._state_file = state_file
        self._sockets = (http, smtp)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="sandbox", daemon=True)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._simulation: Simulation | None = None
        self._stopping = asyncio.Event()

    def start(self) -> None:
        self._thread.start()
        self._started.wait()
        if self._failure:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself, and the failure says why
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        if self._failure:
            raise self._failure

    def call(self, work: Callable[[Simulation], Awaitable[T]]) -> T:
        """Carry out work on the sandbox's loop and wait for it."""

        async def carry_out() -> T:
            if self._simulation is None:
                raise StoppedError
            return await work(self._simulation)

        doing = carry_out()
        try:
            return asyncio.run_coroutine_threadsafe(doing, self._loop).result()
        except concurrent.futures.CancelledError as error:
            raise StoppedError from error
        except RuntimeError as error:
            if not self._loop.is_closed():
                raise
            doing.close()
            raise StoppedError from error

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve(*self._sockets))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for the start
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self, http: socket.socket, smtp: socket.socket) -> None:
        simulation = self._simulation = self._make_simulation()
        keeping = self._state_file.open(simulation) if self._state_file else contextlib.nullcontext()
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(keeping)
            mail_server = SmtpServer(simulation.mailbox, simulation.troubles, simulation.feed, simulation.pause)
            listener = await self._loop.create_server(mail_server.protocol, sock=smtp)
            server = HttpServer(self._make_application(simulation))
            serving = self._loop.create_task(server.serve(sockets=[http]))
            await server.ready.wait()
            self._started.set()
            await self._stopping.wait()
            await simulation.end()
            listener.close()
            mail_server.stop()
            server.should_exit = True
            await serving


def _listen(host: str, port: int, option: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        listener.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise PortInUseError(
                f"Port {port} is in use: stop what listens there, or choose another port with {option}."
            ) from error
        raise SandboxError(f"Cannot listen on {host} port {port} ({option}): {error}.") from error
    return listener
