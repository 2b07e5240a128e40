"""vLLM: what it dumps and takes as files, and the plug-in that serves our plans in it."""
