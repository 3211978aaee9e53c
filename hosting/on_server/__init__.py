"""What runs on the server itself, as root, for the time of one `pulumi up`: it is sent along and leaves nothing behind.

Only the standard library, and nothing newer than Python 3.11. A run looks at what is there, compares it with what was
declared and changes exactly what differs, so that it may be cut off anywhere and simply run again.
"""
