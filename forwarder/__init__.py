"""The forwarder: CallFire's postbacks in, emails out, nothing lost in between.

It runs in production for years, so it never imports what deploys it (Pulumi, zeep) nor what imitates CallFire.
`app.py` shows how the parts are put together.
"""
