"""What is asked of a command that must fail."""


def fails(call, code, *arguments) -> str:
    """The one line on stderr of a command that must fail with this code."""
    found, out, err = call(*arguments)
    assert found == code, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    return err.removeprefix("error: ").removesuffix("\n")


# --- help --------------------------------------------------------------------------------------------------------------------------------
