"""vLLM's own OpenAI server. Its engines, their workers and their coordinator are forked, as vLLM does by itself where there is a GPU: on a
CPU it starts each of these five processes anew (`platforms/cpu.py`), of which each imports vLLM.
"""

import multiprocessing
import sys


def run(job, rank):
    """Serve until this process is ended; `words` is the command line."""
    from vllm.entrypoints.launchers.api_server.entry import main  # what `vllm.entrypoints.openai.api_server` runs

    forked = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: forked
    sys.argv = ["api_server", *job["arguments"]["words"]]
    main()
