"""What can go wrong, split by what the caller does about it."""

# ruff: noqa: N818 - names that say what is the matter (`Unavailable`) read better where they are raised and caught


class ForwarderError(Exception):
    """Something a person has to know about; the message says what, where and what to do."""


class SettingsError(ForwarderError):
    """Settings, routes or contacts that cannot work; the message holds every finding, one per line."""


class StartError(ForwarderError):
    """The forwarder cannot start here and now: a port, a folder, a lock or a database is not to be had."""


class Unavailable(ForwarderError):
    """Nothing was stored, and nothing may be acknowledged: answer 503 and let CallFire send it again."""


class Unstorable(ForwarderError):
    """The database works and will never have what it was given; whatever else came with it is not stored either."""


class MailServerUnavailable(ForwarderError):
    """No mail can be handed over at all: every delivery stays where it is until the mail server is back."""
