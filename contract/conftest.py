"""What all contract tests share."""

pytest_plugins = ["shows", "serving.fixtures"]
