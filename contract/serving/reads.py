"""A probe: the tensors that vLLM's loader read from the checkpoint."""

_read = []


class Watched:
    """An open file of weights."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        self._open = self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def keys(self):
        return self._open.keys()

    def get_tensor(self, name):
        _read.append(name)
        return self._open.get_tensor(name)


def install():
    from vllm.model_executor.model_loader import weight_utils

    plain = weight_utils.safe_open
    weight_utils.safe_open = lambda *arguments, **named: Watched(plain(*arguments, **named))


def report(worker):
    """`read`: names of tensors."""
    return {"read": _read}
