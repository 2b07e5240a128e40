"""What all contract tests share."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before any test file imports our kernel: it is Python then, and runs on a CPU

pytest_plugins = ["shows", "sglang_stand_ins", "vllm_stand_ins", "serving.fixtures"]
