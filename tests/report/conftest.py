"""One small comparison and its page, for all tests of the folder."""

import pytest

from .pages import compared, content_of

pytest.importorskip("plotly")


@pytest.fixture(scope="package")
def comparison():
    return compared(stand_in=False)


@pytest.fixture(scope="package")
def content(comparison):
    return content_of(comparison)


@pytest.fixture(scope="package")
def page(content):
    from grace_moe.report import html_page

    return html_page(content)
