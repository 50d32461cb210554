"""bonsai/system/hub.py: who answers is asked, who does not is not asked again."""

import socket
import ssl
import threading
import time
import urllib.error

import pytest
from helpers.site import site_with

from bonsai.system import hub

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def at(monkeypatch):
    """at(url): the hub is there; what is set of its library is as before at the end."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return lambda url: monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.mark.parametrize("page", ["", "missing"])
def test_a_hub_that_answers_is_used(at, page):
    with site_with({"": "welcome"}) as site:
        at(f"{site.url}/{page}")
        assert not hub.use_cache_if_offline() and not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no.such.host.invalid", "hub", ""])
def test_a_hub_that_is_not_there(at, url):
    at(url)
    assert hub.use_cache_if_offline() and constants.HF_HUB_OFFLINE


def test_a_hub_that_is_silent(at, monkeypatch):
    """It takes the call and says nothing."""
    monkeypatch.setattr(hub, "WAIT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        at(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.use_cache_if_offline()


def test_a_name_that_is_looked_up_without_end(at, monkeypatch):
    at("http://hub")
    monkeypatch.setattr(hub, "WAIT", 0.05)
    ended = threading.Event()

    def looks(*args, **options):
        ended.wait(60)
        raise OSError

    monkeypatch.setattr("urllib.request.urlopen", looks)
    start = time.perf_counter()
    assert hub.use_cache_if_offline() and time.perf_counter() - start < 30
    ended.set()


def test_a_python_without_certificates_reached_it(at, monkeypatch):
    """The hub's library brings certificates of its own."""

    def refused(*args, **options):
        raise urllib.error.URLError(ssl.SSLCertVerificationError("no issuer"))

    monkeypatch.setattr("urllib.request.urlopen", refused)
    at("https://hub")
    assert not hub.use_cache_if_offline()


def test_who_is_told_to_stay_offline_asks_nobody(at, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "answers", None)
    assert hub.use_cache_if_offline()
