"""How large models and clusters may be. SECURITY.md has the same numbers, and a test compares them."""

MAX_EXPERTS = 32_767
"""Of a layer: expert ids are int16 in files."""
MAX_LAYERS = 10_000
"""With experts, of a model."""
MAX_LAYER_ID = 99_999
"""The largest number that a model may give a layer."""
MAX_DEVICES = 4_096
"""Of a topology: tables of devices by devices stay small."""
MAX_TOKENS = 2**31 - 1
"""Of a trace: request ids are int32 in files."""
MAX_COUNT = 2**40
"""Of tokens that an engine counted for one expert: the sums of such counts stay within 64 bits."""
