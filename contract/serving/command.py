"""`grace-moe`, in a process that has imported vLLM."""


def run(job, rank):
    """`code`: what the command ends with; `words` is its command line."""
    from grace_moe.cli import main

    try:
        main(job["arguments"]["words"])
    except SystemExit as end:
        return {"code": end.code or 0}
