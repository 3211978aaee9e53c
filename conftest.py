"""What every test can use: the sandbox's fixtures."""

pytest_plugins = ["sandbox.pytest_plugin"]
