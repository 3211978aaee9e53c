"""What the sandbox's tests speak to it with, besides its own Python object."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import zeep
from lxml import etree

SHARED = Path(__file__).parents[2].parent / "shared" / "callfire"
SERVICE = "http://api.callfire.com/service/xsd"
DATA = "http://api.callfire.com/data"
SOAP_11 = "http://schemas.xmlsoap.org/soap/envelope/"
SOAP_12 = "http://www.w3.org/2003/05/soap-envelope"
INBOUND_TEXT = "INBOUND_TEXT_FINISHED"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "callfire-mail"
"""What is fetched once for the tests lies here, outside the checkout."""


def vendor_file(*path: str) -> Path:
    """One of CallFire's own files, read where it stands beside the project; skips the test where there are none."""
    if not SHARED.is_dir():
        pytest.skip("CallFire's files are not beside the checkout (../shared/callfire)")
    return SHARED.joinpath(*path)


def npm_package(package: str) -> Path:
    """A folder whose node_modules hold a package, named as `name@version`; skips the test where it can't be had."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not here: apt-get install nodejs npm")
    folder = CACHE / package
    if not (folder / "node_modules" / package.partition("@")[0]).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), package]
        done = subprocess.run(install, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install {package}: {done.stderr.strip().splitlines()[-1]}")
    return folder


@contextmanager
def soap_service(sandbox: Any, *, version: str = "1.1", wsdl: str | None = None, **credentials: str) -> Iterator[Any]:
    """The Subscription port through zeep, from the sandbox's own WSDL or a vendor's file."""
    with requests.Session() as session:
        session.auth = (credentials.get("login", sandbox.login), credentials.get("password", sandbox.password))
        served = f"{sandbox.url}/api/{version}/wsdl/callfire-service-http-soap12.wsdl"
        client = zeep.Client(wsdl or served, transport=zeep.Transport(session=session))
        address = f"{sandbox.url}/api/{version}/soap12/subscription"
        yield client.create_service(
            "{http://api.callfire.com/service/wsdl/http/soap12}SubscriptionServiceBinding", address
        )


def post_soap(
    sandbox: Any, content: str, *, version: str = "1.1", envelope: str = SOAP_12, **options: Any
) -> requests.Response:
    """One request written by hand: `content` stands in the Body, with the prefixes svc and data declared."""
    body = (
        f'<s:Envelope xmlns:s="{envelope}" xmlns:svc="{SERVICE}" xmlns:data="{DATA}">'
        f"<s:Body>{content}</s:Body></s:Envelope>"
    )
    options.setdefault("auth", (sandbox.login, sandbox.password))
    url = f"{sandbox.url}/api/{version}/soap12/{options.pop('service', 'subscription')}"
    return requests.post(url, data=body.encode(), timeout=10, **options)


def body_of(answer: requests.Response) -> Any:
    """The element in the Body of an answer, or None where it is empty."""
    envelope = etree.fromstring(answer.content)
    body = envelope[0]
    assert etree.QName(body).localname == "Body"
    return body[0] if len(body) else None


def fault_of(answer: requests.Response) -> tuple[str | None, str | None]:
    """The code and message of ServiceFaultInfo; None for both where the fault has no detail."""
    info = etree.fromstring(answer.content).find(f".//{{{SERVICE}}}ServiceFaultInfo")
    if info is None:
        return None, None
    return info.findtext(f"{{{SERVICE}}}FaultCode"), info.findtext(f"{{{SERVICE}}}Message")
