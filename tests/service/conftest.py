"""One service for all tests that only ask it."""

import pytest


pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from tests.support.served import Served


TOKEN = "a-token-for-tests-0123456789"


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN + "\n")
    with Served("--token-file", str(token), "--max-body-mb", "0.5", "--batch-ms", "20") as service:
        yield service


@pytest.fixture(scope="session")
def ask(served):
    """Asks with the token."""

    def ask(path, body=None, **options):
        headers = {"Authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
        return served.ask(path, body, headers=headers, **options)

    return ask
