"""What `import` makes of subscriptions, before any CLI reads it."""

import ast
from typing import Any

from provider.imports import endpoints_file, name_resources, python_code
from provider.remote import RemoteSubscription

PROPERTIES = {
    "endpoint": "https://mail.example.com/postback/0123456789abcdef",
    "notification_format": "XML",
    "trigger_event": "INBOUND_TEXT_FINISHED",
    "enabled": True,
}


def declared(**more: Any) -> dict[str, Any]:
    """The arguments, but the endpoint, that the code for one subscription declares."""
    code = python_code({"texts": RemoteSubscription("7", {**PROPERTIES, **more})})
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and node.keywords)
    return {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg and word.arg != "endpoint"}


def test_the_code_declares_every_value_as_it_is() -> None:
    """A keyword may be a word of JSON's or of Python's, or no ASCII, and an account may hold any odd number."""
    filter_ = {"from_number": "67076:true", "to_number": "falsetto", "batch_id": "7", "inbound": False}
    assert declared(filter=filter_) == {"filter": filter_}
    odd = {"from_number": 'it\'s "null"\\\n', "to_number": "ünïcode 📞"}
    assert declared(filter=odd) == {"filter": odd}
    changed = {"notification_format": "it's", "trigger_event": None, "enabled": False, "non_strict_ssl": True}
    assert declared(**changed) == changed


def test_a_name_is_given_once() -> None:
    """Where another subscription or resource has it, or a former import for another endpoint, the id is added."""
    one, two = (RemoteSubscription(id_, {**PROPERTIES, "endpoint": f"https://mail/{id_}"}) for id_ in ("1", "2"))
    assert name_resources([one, two], (), {}) == {"inbound-text": one, "inbound-text-2": two}
    assert name_resources([two], {"inbound-text"}, {}) == {"inbound-text-2": two}
    former = endpoints_file({"inbound-text": one})
    assert name_resources([two], (), former) == {"inbound-text-2": two}
    assert name_resources([one], (), former) == {"inbound-text": one}
