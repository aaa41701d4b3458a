"""Settings of all tests, made before anything is imported, and what several of them need."""

import os
import shutil

import pytest

# face-alignment would compile its small helpers for a quarter of a minute, for a few faces.
os.environ['NUMBA_DISABLE_JIT'] = '1'


@pytest.fixture(scope='session')
def browser():
    """Headless Chromium: the system's, or Playwright's."""
    playwright = pytest.importorskip('playwright.sync_api')
    path = shutil.which('chromium') or shutil.which('google-chrome')
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch(executable_path=path, args=['--no-sandbox'])
        except playwright.Error as error:
            pytest.skip(f'no Chromium: {str(error).splitlines()[0]}')
        yield browser
        browser.close()
