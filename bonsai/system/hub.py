"""Whether the Hugging Face hub can be reached, before its libraries retry for half a minute."""

import http.client
import ssl
import threading
import urllib.error
import urllib.request

WAIT = 5.0  # seconds; where there is no network at all, it takes none


def use_cache_if_offline() -> bool:
    """Ask the hub once; where it does not answer, have its library look into its cache alone, as
    HF_HUB_OFFLINE=1 does. Returns whether it looks there alone. Call it before an import of
    `datasets`, which takes over what it finds set."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not answers(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
    return bool(constants.HF_HUB_OFFLINE)


def answers(url: str) -> bool:
    """Whether there is a server at an address, found out within WAIT seconds."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=WAIT).close()
        except urllib.error.HTTPError:
            pass  # an answer
        except urllib.error.URLError as e:
            # of a Python without certificates of its own it is an answer
            if not isinstance(e.reason, ssl.SSLError):
                return
        except (OSError, http.client.HTTPException, ValueError):
            return
        answered.set()

    # in a thread, as looking up a name knows no limit
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(WAIT)
    return answered.is_set()
