"""What the provider's tests share: the SDK's own server for dynamic providers, driven over gRPC without an engine."""

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import struct_pb2
from pulumi.dynamic.dynamic import serialize_provider
from pulumi.runtime import rpc
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from provider.controller import NAME, SubscriptionProvider
from sandbox import Sandbox

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = rpc.UNKNOWN
"""How a value that is not known yet travels."""

BLOB = serialize_provider(SubscriptionProvider())

Properties = dict[str, Any]


class ProviderFailure(Exception):  # noqa: N818 - what the engine would show
    """The text of an error as it reaches the engine."""


class ProviderServer:
    """`python -m pulumi.dynamic` with the given stack configuration, as the engine starts it.

    Args:
        config: the stack's, `callfire:login` and so on.
        environ: more environment variables.
    """

    def __init__(self, config: Mapping[str, str], environ: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("CALLFIRE_")}
        self._environ |= {"PULUMI_PROJECT": "test", **(environ or {})}
        self.output: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "pulumi.dynamic"],
            cwd=ROOT,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        port = int(self.process.stdout.readline())
        self._reader = threading.Thread(target=self._read_output)
        self._reader.start()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._stub = provider_pb2_grpc.ResourceProviderStub(self._channel)
        self._stub.Configure(provider_pb2.ConfigureRequest(args=_struct(self._config)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def check(self, properties: Properties, name: str = "texts") -> tuple[Properties, list[str]]:
        """The checked inputs, and the failures, each with its property."""
        request = provider_pb2.CheckRequest(olds=_struct({}), news=_struct(self._props(properties, name)))
        answer = self._call("Check", request)
        failures = [f"{f.property} {f.reason}".strip() for f in answer.failures]
        return _plain(answer.inputs), failures

    def failing(self, properties: Properties) -> list[str]:
        """The properties of the failures; the engine prints the value of each one that it is told."""
        request = provider_pb2.CheckRequest(olds=_struct({}), news=_struct(self._props(properties, "texts")))
        return [failure.property for failure in self._call("Check", request).failures]

    def inputs(self, properties: Properties, name: str = "texts") -> Properties:
        """The checked inputs of properties that have no mistake."""
        inputs, failures = self.check(properties, name)
        assert failures == []
        return inputs

    def diff(self, id_: str, olds: Properties, news: Properties) -> str:
        """`same`, `update` or `replace PROPERTY…`."""
        answer = self._call("Diff", provider_pb2.DiffRequest(id=id_, olds=_struct(olds), news=_struct(news)))
        if answer.replaces:
            return "replace " + " ".join(answer.replaces)
        return {provider_pb2.DiffResponse.DIFF_SOME: "update", provider_pb2.DiffResponse.DIFF_NONE: "same"}[
            answer.changes
        ]

    def create(self, inputs: Properties) -> tuple[str, Properties]:
        """The id and the outputs."""
        answer = self._call("Create", provider_pb2.CreateRequest(properties=_struct(inputs)))
        return answer.id, _plain(answer.properties)

    def declare(self, properties: Properties, name: str = "texts") -> tuple[str, Properties]:
        """Check and create."""
        return self.create(self.inputs(properties, name))

    def read(self, id_: str, outputs: Properties) -> tuple[str, Properties, Properties]:
        """The id (empty when it is gone), the outputs and the inputs."""
        answer = self._call("Read", provider_pb2.ReadRequest(id=id_, properties=_struct(outputs)))
        return answer.id, _plain(answer.properties), _plain(answer.inputs)

    def get(self, id_: str) -> tuple[str, Properties]:
        """The id and the outputs, as `Subscription.get` asks for them."""
        answer = self._call("Read", provider_pb2.ReadRequest(id=id_, inputs=_struct(self._props({}, "there"))))
        return answer.id, _plain(answer.properties)

    def update(self, id_: str, olds: Properties, news: Properties) -> Properties:
        """The outputs."""
        answer = self._call("Update", provider_pb2.UpdateRequest(id=id_, olds=_struct(olds), news=_struct(news)))
        return _plain(answer.properties)

    def delete(self, id_: str, outputs: Properties) -> None:
        """Delete the resource."""
        self._call("Delete", provider_pb2.DeleteRequest(id=id_, properties=_struct(outputs)))

    def lines(self) -> list[str]:
        """What the provider has said so far."""
        said = []
        with contextlib.suppress(queue.Empty):
            while True:
                said.append(self.output.get_nowait())
        return said

    def _props(self, properties: Properties, name: str) -> Properties:
        return {"__provider": BLOB, NAME: name, **properties}

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=60)
        except grpc.RpcError as error:
            raise ProviderFailure(error.details()) from None

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.put(line.rstrip("\n"))


def config_for(sandbox: Sandbox, **more: str) -> dict[str, str]:
    """A stack configuration that points at a sandbox."""
    return {
        "callfire:url": sandbox.url,
        "callfire:login": sandbox.login,
        "callfire:password": sandbox.password,
        **{f"callfire:{name}": value for name, value in more.items()},
    }


@contextlib.contextmanager
def serving(sandbox: Sandbox, **more: str) -> Iterator[ProviderServer]:
    """A provider server for a sandbox."""
    with ProviderServer(config_for(sandbox, **more)) as server:
        yield server


def _struct(properties: Mapping[str, Any]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(properties)
    return struct


def _plain(struct: struct_pb2.Struct) -> Properties:
    return {
        name: value for name, value in rpc.deserialize_properties(struct, keep_unknowns=True).items() if name != "id"
    }
