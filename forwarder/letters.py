"""From a delivery to its mail: the route's templates, the contacts' names and the headers of `mail.py`."""

import logging
from typing import Final

from forwarder.contacts import Contacts
from forwarder.mail import Letterhead, compose_email, default_body, default_subject
from forwarder.outbox import Delivery
from forwarder.routes import Route, Routes
from forwarder.smtp import Envelope
from forwarder.templates import local_time, text_fields

log: Final = logging.getLogger(__name__)


class Letters:
    """Writes the mails of one forwarder."""

    def __init__(self, letterhead: Letterhead, routes: Routes, contacts: Contacts) -> None:
        self._letterhead = letterhead
        self._routes = routes
        self._contacts = contacts

    def write(self, delivery: Delivery) -> Envelope:
        """The mail for `delivery`, the same at every attempt as long as routes and contacts are."""
        route = self._routes.named(delivery.route)
        subject, body = self._words(delivery, route)
        content = compose_email(
            self._letterhead,
            delivery.text,
            delivery.received_at,
            to=route.recipients.to_header,
            cc=route.recipients.cc_header,
            subject=subject,
            body=body,
            name=self._contacts.name(delivery.text.from_number),
        )
        return Envelope(self._letterhead.address, delivery.recipient, content)

    def _words(self, delivery: Delivery, route: Route) -> tuple[str, str]:
        """Subject and body; a template that fails for just this text gives way to the tutorial's words."""
        text = delivery.text
        subject, body = default_subject(text), default_body(text, _time(delivery, route))
        if route.subject is None and route.body is None:
            return subject, body
        fields = text_fields(text, delivery.received_at, route.name, route.zone, self._contacts)
        try:
            return (
                route.subject.render(fields) if route.subject else subject,
                route.body.render(fields) if route.body else body,
            )
        except Exception as error:  # noqa: BLE001 - a template may do anything, and the text must arrive
            # The error's words may be the text's.
            log.warning("template.failed text_id=%s route=%s error=%s", text.id, route.name, type(error).__name__)
            return subject, body


def _time(delivery: Delivery, route: Route) -> str:
    """What stands behind `Time:`: CallFire's own words, unless the route names a time zone."""
    if route.zone is None:
        return delivery.text.created
    return local_time(delivery.text, delivery.received_at, route.zone).isoformat(timespec="seconds")
