"""SOAP stacks that nobody here wrote: PHP's with the 2012 tutorial's programs, node's `soap`, and Java's JAX-WS.

tests/debian-packages.txt and the fixtures below say what they need; without it they are skipped, with the reason.
zeep is used throughout the other tests.
"""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox import Sandbox
from sandbox.pytest_plugin import PostbackEndpoint
from tests.contract.sandbox_peers import CACHE, npm_package

CLIENTS = Path(__file__).parent / "clients"
NODE_SOAP = "soap@1.13.0"


def run(*command: str, given: bytes = b"") -> str:
    """The output of a program that must succeed and complain about nothing."""
    done = subprocess.run(command, input=given, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture(scope="session")
def php() -> str:
    """PHP with its SOAP extension."""
    found = shutil.which("php")
    if found is None or not {"soap", "SimpleXML"} <= set(run(found, "-m").split()):
        pytest.skip("PHP with soap and SimpleXML is not here: apt-get install php-cli php-soap php-xml")
    return found


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """A folder with npm's `soap`."""
    return npm_package(NODE_SOAP)


@pytest.fixture(scope="session")
def java_client(shared_sandbox: Sandbox) -> str:
    """The class path of a client that JAX-WS generates from the served WSDL; kept until one of the two changes."""
    if shutil.which("java") is None or shutil.which("mvn") is None:
        pytest.skip("Java and Maven are not here: apt-get install default-jdk-headless maven")
    sources = [path for path in (CLIENTS / "java").rglob("*") if path.is_file()]
    contract = [path for path in (CLIENTS.parents[2] / "sandbox" / "wsdl").rglob("*") if path.is_file()]
    mark = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources + contract))).hexdigest()[:16]
    folder = CACHE / f"java-client-{mark}"
    if not (folder / "target" / "dependency").is_dir():
        shutil.copytree(CLIENTS / "java", folder, dirs_exist_ok=True)
        build = ["mvn", "-q", "-B", "-f", str(folder / "pom.xml"), f"-Dwsdl={shared_sandbox.wsdl}", "compile"]
        done = subprocess.run(build, capture_output=True, text=True, timeout=280, check=False)
        if "Could not transfer" in done.stdout or "could not be resolved" in done.stdout:
            pytest.skip("Maven cannot fetch JAX-WS")
        assert done.returncode == 0, done.stdout
    return f"{folder / 'target' / 'classes'}:{folder / 'target' / 'dependency'}/*"


def test_the_tutorials_programs_work_unchanged(sandbox: Sandbox, php: str, postback_endpoint: PostbackEndpoint) -> None:
    """Register, receive and delete all, with only address and credentials changed."""
    credentials = (sandbox.wsdl, sandbox.login, sandbox.password)
    ident = json.loads(run(php, str(CLIENTS / "tutorial_register.php"), *credentials, postback_endpoint.url))
    assert [found["id"] for found in sandbox.subscriptions()] == [str(ident)]
    sandbox.send_text("Hello, World!", "18185551212", "18186469991", created="2012-09-24T05:02:35Z")
    printed = run(php, str(CLIENTS / "tutorial_receive.php"), given=postback_endpoint.take().body)
    subject, body = json.loads(printed)
    assert subject == "18186469991 received a new SMS from 18185551212"
    assert body == "From: 18185551212\n  To: 18186469991\nTime: 2012-09-24T05:02:35Z\nText: Hello, World!\n"
    delete_all = (php, str(CLIENTS / "tutorial_delete_all.php"), *credentials)
    assert run(*delete_all).startswith(f"deleted {ident}\n")
    assert sandbox.subscriptions() == []


def test_the_tutorial_sees_none_one_and_several_subscriptions(sandbox: Sandbox, php: str) -> None:
    """None becomes an empty id and a fault; one is an object; several are an array."""
    delete_all = (php, str(CLIENTS / "tutorial_delete_all.php"), sandbox.wsdl, sandbox.login, sandbox.password)
    assert run(*delete_all).startswith("fault Element 'Id': '' is not a valid value")
    for number in (1, 2):
        for _ in range(number):
            sandbox.create_subscription(endpoint="http://h/", trigger_event="INBOUND_TEXT_FINISHED")
        assert run(*delete_all).count("deleted") == number
        assert sandbox.subscriptions() == []


def test_the_tutorial_sends_soap_1_1_to_the_1_2_address(sandbox: Sandbox, php: str) -> None:
    """PHP ignores its 'SOAP_1_2', so that is what the sandbox must take."""
    headers = run(php, str(CLIENTS / "tutorial_delete_all.php"), sandbox.wsdl, sandbox.login, sandbox.password)
    assert "POST /api/1.1/soap12/subscription" in headers
    assert "Content-Type: text/xml" in headers
    assert (
        'SOAPAction: "http://api.callfire.com/service/wsdl/SubscriptionServicePortType/DeleteSubscription"' in headers
    )
    assert "http://schemas.xmlsoap.org/soap/envelope/" in sandbox.request_log()[-1]["request"]


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_nodes_soap_speaks_with_the_sandbox(sandbox: Sandbox, node_modules: Path, version: str) -> None:
    """The five operations and a fault, in either version of SOAP."""
    program = ("node", str(CLIENTS / "soap_client.mjs"), str(node_modules))
    found = json.loads(run(*program, sandbox.wsdl, sandbox.login, sandbox.password, version))
    assert found["got"]["Endpoint"] == "http://127.0.0.1:1/node"
    assert found["got"]["SubscriptionFilter"] == {"ToNumber": "15555550100"}
    assert found["found"]["TotalResults"] == 1
    assert "NOT_FOUND" in found["fault"]
    assert sandbox.subscriptions() == []
    assert sandbox.requests() == {
        "CreateSubscription": 1,
        "GetSubscription": 2,
        "UpdateSubscription": 1,
        "QuerySubscriptions": 1,
        "DeleteSubscription": 1,
    }


@pytest.mark.timeout(300)  # Maven fetches some 40 packages when it first runs
def test_a_java_client_generated_from_the_wsdl_speaks_with_the_sandbox(sandbox: Sandbox, java_client: str) -> None:
    """The five operations, and a fault that becomes the generated exception with its ServiceFaultInfo."""
    program = ("java", "-cp", java_client, "example.SoapClient")
    assert json.loads(run(*program, sandbox.wsdl, sandbox.login, sandbox.password)) == {
        "endpoint": "http://127.0.0.1:1/java",
        "format": "XML",
        "to": "15555550100",
        "total": 1,
        "enabled": False,
        "fault": "NOT_FOUND: subscription 19001 not found",
    }
    assert sandbox.subscriptions() == []
