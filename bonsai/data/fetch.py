"""Text from elsewhere: a file by its address, and data sets of the Hugging Face hub.

Every failure, no network above all, is one line that names the other way: `--input=PATH`.
"""

import http.client
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from bonsai.data.readers import READERS, read_whole
from bonsai.files.access import SETTINGS, writing
from bonsai.files.atomic import whole_file
from bonsai.system.errors import UserError


def fetch_text(url: str, path: Path) -> str:
    """The text of `path`, downloaded from `url` first if it is not there."""
    if not path.exists():
        print(f"downloading {url}")
        download(url, path)
    return read_whole(path)


def download(url: str, path: Path) -> None:
    """Fetch `url` into `path`, whole or not at all. Raises UserError when that fails."""
    with writing(path), _open_url(url) as response, whole_file(path) as f:
        expected = response.headers.get("Content-Length")
        while block := _receive(response, url):
            f.write(block)
        if expected is not None and str(f.tell()) != expected.strip():
            raise _no_download(url, f"{f.tell()} of {expected} bytes arrived")


def hub_files(repo: str, revision: str, folder: str = "") -> list[tuple[str, int]]:
    """(path, bytes) of the files in a data set on the hub that we can read, or in one folder of it,
    sorted; the parquet files, if there are any.

    Asked by hand, because the hub's own library retries for half a minute and prints a page when
    there is no network. Raises UserError then.
    """
    url = f"{_hub().constants.ENDPOINT}/api/datasets/{repo}/tree/"
    url += f"{urllib.parse.quote(revision, safe='')}/{folder}".rstrip("/") + "?recursive=true"
    with _open_url(url) as response:
        try:
            entries = json.loads(response.read(SETTINGS))
            files = sorted((e["path"], e["size"]) for e in entries if e["type"] == "file")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _no_download(url, "the answer is no list of files") from None
    parquet = [(path, size) for path, size in files if path.endswith(".parquet")]
    files = parquet or [(p, size) for p, size in files if p.endswith(tuple(READERS)) and size]
    if not files:
        raise _no_download(url, f"there is no {', '.join(READERS)} file")
    return files


def hub_downloads(
    repo: str, revision: str, paths: Sequence[str], downloads: Path, keep: bool = False
) -> Iterator[Path]:
    """Files of the hub, each downloaded into `downloads` when its turn comes and deleted after its
    turn unless `keep`. What is there already is not downloaded again."""
    for path in paths:
        try:
            file = Path(
                _hub().hf_hub_download(
                    repo, path, repo_type="dataset", revision=revision, local_dir=downloads
                )
            )
        except Exception as e:  # the library's own errors are many, and pages long
            raise UserError(
                f"the download of {path} from {repo} failed ({type(e).__name__}: {str(e)[:200]}): "
                f"run again to go on, or give local files with --input=PATH"
            ) from None
        yield file
        if not keep:
            file.unlink()


def _hub():
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError:
        raise UserError(
            "downloads from the Hugging Face hub need datasets: pip install datasets"
        ) from None
    return huggingface_hub


def _open_url(url: str) -> http.client.HTTPResponse:
    context = ssl.create_default_context()
    try:  # certifi comes with tiktoken; some Pythons have no certificates of their own
        import certifi

        context.load_verify_locations(certifi.where())
    except ImportError:
        pass
    try:
        return urllib.request.urlopen(url, timeout=30, context=context)
    except urllib.error.HTTPError as e:
        raise _no_download(url, f"HTTP {e.code} {e.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as e:  # URLError is an OSError
        raise _no_download(url, getattr(e, "reason", e)) from None


def _receive(response: http.client.HTTPResponse, url: str) -> bytes:
    try:
        return response.read(1 << 16)
    except (OSError, http.client.HTTPException) as e:
        raise _no_download(url, e) from None


def _no_download(url: str, reason: object) -> UserError:
    return UserError(
        f"cannot download {url} ({reason}): without a network, give a local copy with --input=PATH"
    )
