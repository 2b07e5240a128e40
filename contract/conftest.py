"""What all contract tests share."""

pytest_plugins = ["shows", "sglang_stand_ins", "serving.fixtures"]
