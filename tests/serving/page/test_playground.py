"""The playground's page in a real browser, on a real server: serve.py with a tiny model.

Screenshots of what each test saw last are in test-output/playground/. Where Chromium or Playwright
is missing, everything here is skipped; on Debian: apt-get install chromium.
"""

import ast
import contextlib
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from helpers.browser import CHROMIUM, SHOTS, run_python
from helpers.programs import ROOT, environment, metrics, train_all
from helpers.server_in_process import model_server, running

from bonsai.serving.app import create_app

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

WEB = ROOT / "web"
PROMPT = "the tree is "

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")


# ---- a server ----


class Server:
    """serve.py as a process of its own, on a port that stays the same over restarts."""

    def __init__(self, folder: Path, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.options = folder, options
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(ROOT / "serve.py"), "--models=long=out-long,other=out-other"]
        self.process = subprocess.Popen(
            [*command, f"--port={self.port}", "--device=cpu", *self.options],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if line.startswith("serving on"):
                return
        raise AssertionError("".join(seen))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, path: str, body: dict | None = None) -> dict:
        request = urllib.request.Request(self.url + path, method="POST" if body else "GET")
        request.add_header("Content-Type", "application/json")
        data = json.dumps(body).encode() if body else None
        with urllib.request.urlopen(request, data, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def folder(workplace, tmp_path_factory) -> Path:
    """Two runs: out-long, whose texts take a second or more, and out-other."""
    folder = tmp_path_factory.mktemp("playground")
    shape = ["--n_layer=4", "--n_embd=64", "--block_size=1000", "--max_iters=6", "--log_interval=1"]
    shape += ["--batch_size=1", "--eval_iters=1"]
    shape += ["--n_head=8"]  # 8 channels each: not for block.cpp, with which texts come too fast
    train_all(
        workplace,
        {
            folder / "out-long": [*shape, "--eval_interval=2", "--gradient_accumulation_steps=1"],
            folder / "out-other": ["--log_interval=1", "--eval_interval=5", "--learning_rate=1e-3"],
        },
    )
    return folder


@pytest.fixture(scope="module")
def server(folder):
    server = Server(folder)
    yield server
    server.kill()


def settings(page, **values) -> None:
    if not page.locator("#settings").is_visible():
        page.locator("#settings-toggle").click()
    for name, value in values.items():
        page.locator(f"#set-{name}").fill(str(value))


def complete(page, prompt: str = PROMPT, **values) -> None:
    """Ask for a continuation and wait until it is there."""
    settings(page, **values)
    page.locator("#prompt").fill(prompt)
    page.locator("#go").click()
    expect(page.locator("#stats")).to_contain_text("tokens/s")
    expect(page.locator("#stop")).to_be_hidden()


def continuation(page) -> str:
    return "".join(page.locator("#output .token").all_text_contents())


# ---- complete ----


def test_a_text_streams_in(server, visit):
    page = visit(server.url)
    expect(page.locator("#output")).to_contain_text("The continuation appears here")
    settings(page, temperature=0.7, max_tokens=60, seed=5)
    page.locator("#prompt").click()
    page.keyboard.press("Control+A")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#output .token")).to_have_count(60)
    expect(page.locator("#stats")).to_contain_text("60 tokens")
    expect(page.locator("#stats")).to_contain_text("seed 5")
    expect(page.locator("#stats")).to_contain_text("max tokens reached")
    assert page.locator("#output .prompt").text_content() == PROMPT
    body = {"model": "long", "prompt": PROMPT, "temperature": 0.7, "max_tokens": 60, "seed": 5}
    assert continuation(page) == server.ask("/v1/completions", body)["choices"][0]["text"]


@pytest.mark.parametrize("way", ["button", "key"])
def test_stop(server, visit, way):
    page = visit(server.url)
    page.get_by_text("More", exact=True).click()
    settings(page, max_tokens=900, n=8)  # so that the page cannot have got all of it at once
    page.locator("#prompt").fill(PROMPT)
    # from inside the page: on a busy machine a driver may come too late
    page.evaluate(
        """(way) => new MutationObserver((_, observer) => {
          if (document.querySelectorAll("#output .token").length < 4) return;
          observer.disconnect();
          const key = new KeyboardEvent("keydown", { key: "Escape", bubbles: true });
          if (way === "button") document.getElementById("stop").click();
          else document.getElementById("prompt").dispatchEvent(key);
        }).observe(document.getElementById("output"), { childList: true, subtree: true })""",
        way,
    )
    page.locator("#go").click()
    expect(page.locator("#stats")).to_contain_text("stopped by you")
    count = page.locator("#output .token").count()
    assert 4 <= count < 900
    page.wait_for_timeout(300)
    assert page.locator("#output .token").count() == count
    expect(page.locator("#stop")).to_be_hidden()


def test_another_token_is_picked(server, visit):
    page = visit(server.url)
    complete(page, temperature=0, max_tokens=30, seed=1)
    tokens = page.locator("#output .token")
    before = tokens.all_text_contents()
    tokens.nth(0).focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    popup = page.get_by_role("dialog")
    expect(popup).to_be_visible()
    shown = popup.locator(".option .number").all_text_contents()
    chances = [float(text.rstrip("%")) for text in shown]
    assert len(chances) == 5 and chances == sorted(chances, reverse=True) and sum(chances) <= 100.1
    # greedy: the chosen one is the likeliest, and the first that can be picked comes after it
    assert popup.locator(".option").nth(0).is_disabled()
    expect(popup.locator(".option").nth(1)).to_be_focused()
    body = {"model": "long", "prompt": PROMPT + "".join(before[:4]), "max_tokens": 1}
    body |= {"logprobs": 5, "temperature": 0}
    top = server.ask("/v1/completions", body)["choices"][0]["logprobs"]["top_logprobs"][0]
    second = sorted(top, key=top.get, reverse=True)[1]
    page.keyboard.press("Enter")
    expect(page.locator("#versions")).to_contain_text("2 of 2")
    expect(tokens).to_have_count(5 + 30)
    after = tokens.all_text_contents()
    assert after[:4] == before[:4] and after[4] == second != before[4]
    expect(tokens.nth(4)).to_have_class(re.compile("picked"))
    body |= {"prompt": PROMPT + "".join(after[:5]), "max_tokens": 30}
    assert "".join(after[5:]) == server.ask("/v1/completions", body)["choices"][0]["text"]
    page.get_by_role("button", name="Previous version").click()
    assert tokens.all_text_contents() == before


def test_an_empty_prompt_is_a_beginning(server, visit):
    """Also what is picked after it goes on from the beginning that the server chose."""
    page = visit(server.url)
    complete(page, "", temperature=0, max_tokens=8)
    page.locator("#output .token").nth(0).click()
    page.locator(".option:enabled").first.click()
    expect(page.locator("#output .token")).to_have_count(9)
    body = {"model": "long", "prompt": "", "max_tokens": 1, "temperature": 0, "logprobs": 2}
    body["return_token_ids"] = True
    first = server.ask("/v1/completions", body)["choices"][0]
    second = min(first["logprobs"]["top_logprobs"][0].items(), key=lambda item: item[1])[0]
    picked = first["logprobs"]["top_token_ids"][0][second]
    body |= {"prompt": [*first["prompt_token_ids"], picked], "max_tokens": 8}
    assert continuation(page) == second + server.ask("/v1/completions", body)["choices"][0]["text"]


def test_escape_closes_the_alternatives_and_gives_the_focus_back(server, visit):
    page = visit(server.url)
    complete(page, max_tokens=10)
    page.locator("#output .token").nth(2).click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("#output .token").nth(2)).to_be_focused()


def chunk(*tokens: str, finish: str | None = None, other: str = "z", text: str = "") -> str:
    """An event of a stream in which each token has probability 1/2, and `other` 1/4."""
    parts = [t.removeprefix("bytes:").replace("\\x", "") for t in tokens]
    data = [bytes.fromhex(p) if t[:6] == "bytes:" else t.encode() for t, p in zip(tokens, parts)]
    text = text or b"".join(data).decode("utf-8", "replace")
    logprobs = {
        "tokens": tokens,
        "token_logprobs": [-0.6931] * len(tokens),
        "top_logprobs": [{t: -0.6931, other: -1.3863} for t in tokens],
        "top_token_ids": [{t: 7, other: 8} for t in tokens],
    }
    choice = {"text": text, "logprobs": logprobs}
    choice |= {"token_ids": [7] * len(tokens), "prompt_token_ids": [1]}
    return f"data: {json.dumps({'choices': [{**choice, 'finish_reason': finish}]})}\n\n"


def answer_completions(page, body: str, status: int = 200, headers=None) -> None:
    kind = {"Content-Type": "text/event-stream" if status == 200 else "application/json"}
    page.route(
        "**/v1/completions",
        lambda route: route.fulfill(status=status, body=body, headers={**kind, **(headers or {})}),
    )


def test_what_a_model_says_is_text(server, visit):
    """Markup stays text, characters come together from their bytes, controls are shown."""
    page = visit(server.url)
    bad = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    halves = ["bytes:\\xc3", "bytes:\\xa9", "bytes:\\xf0\\x9f", "bytes:\\x8c\\xb3", "bytes:\\xff"]
    answer_completions(page, chunk(bad, *halves, "\x07", finish="stop") + "data: [DONE]\n\n")
    page.locator("#go").click()
    texts = page.locator("#output .token")
    expect(texts).to_have_text([bad, "é", "🌳", "\\xff", "\\x07"])
    assert page.locator("#output img, #output script").count() == 0
    page.locator("#output .token").nth(0).click()
    expect(page.get_by_role("dialog")).to_contain_text("<script>")
    assert page.locator("[role=dialog] script").count() == 0


def test_bytes_that_form_a_character_are_shown_as_it(server, visit):
    """One button for the character; what else each of its bytes could have been stands in it."""
    page = visit(server.url)
    sun = ["bytes:\\xe6", "bytes:\\x97", "bytes:\\xa5"]
    half = ["bytes:\\xe2", "bytes:\\x80"]
    stream = chunk("a", *sun[:2]) + chunk(sun[2], "!", *half, finish="length", other="bytes:\\xac")
    answer_completions(page, stream + "data: [DONE]\n\n")
    page.locator("#go").click()
    tokens = page.locator("#output .token")
    expect(tokens).to_have_text(["a", "日", "!", "\\xe2\\x80"])
    expect(page.locator("#stats")).to_contain_text("7 tokens")
    expect(page.locator(".token.part")).to_have_count(1)
    tokens.nth(1).click()
    popup = page.get_by_role("dialog", name="Tokens 2 to 4: 日")
    parts = popup.get_by_role("group", name="Parts of the character").get_by_role("button")
    expect(parts).to_have_text(["\\xe6", "\\x97", "\\xa5"])
    expect(popup.locator(".option .mono")).to_have_text(["\\xe6", "z"])
    parts.nth(2).click()
    expect(popup.locator(".option .mono")).to_have_text(["日", "旬"])  # e6 97 a5, e6 97 ac
    with page.expect_request("**/v1/completions") as asked:
        popup.locator(".option:enabled").click()
    assert asked.value.post_data_json["prompt"] == [1, 7, 7, 7, 8]  # of the prompt, a, two, ac
    expect(tokens.nth(1)).to_have_text("旬")
    assert page.evaluate(
        """async () => {
          const t = await import("/text.js");
          const tree = [[0xc3, 0xa9, 0xf0], [0x9f], [0x8c, 0xb3]];
          return t.groups([[0x61], [0xe6, 0x97], [0x61], ...tree, [0xff]]);
        }"""
    ) == [[0, 1], [1, 2], [2, 3], [3, 6], [6, 7]]


def test_white_space_has_a_name(server, visit):
    page = visit(server.url)
    blanks = {" ": "space", "\n": "line break", "\t": "tab", "    ": "4 spaces"}
    blanks |= {"\n\n  ": "2 line breaks, 2 spaces", "\u200b": "character U+200B"}
    stream = chunk("a", *blanks, finish="length", other=" ") + "data: [DONE]\n\n"
    answer_completions(page, stream)
    page.locator("#go").click()
    for name in blanks.values():
        expect(page.locator("#output").get_by_role("button", name=name, exact=True)).to_be_visible()
    page.locator("#output .token").first.click()
    popup = page.get_by_role("dialog", name="Token 1: a")
    expect(popup.get_by_role("button", name="space, 25.0%", exact=True)).to_be_visible()
    page.locator("#tab-inside").click()
    page.locator("#inside-prompt").fill("so\n tall")
    page.locator("#look").click()
    looks = page.locator("#looks")
    for name in ("space", "line break"):
        expect(looks.get_by_role("button", name=name, exact=True)).to_be_visible()


def test_signs_for_line_breaks(server, visit):
    """One stands where the line breaks, also within a token, and is no part of the text."""
    page = visit(server.url)
    answer_completions(page, chunk("a.\n\nb", "\n", finish="stop") + "data: [DONE]\n\n")
    page.locator("#go").click()
    tokens = page.locator("#output .token")
    expect(tokens).to_have_count(2)
    pieces = "token => [...token.childNodes].map(n => [n.nodeName, n.textContent])"
    breaks = ["I", "\n"]
    assert tokens.nth(0).evaluate(pieces) == [["#text", "a."], breaks, breaks, ["#text", "b"]]
    assert tokens.nth(1).evaluate(pieces) == [breaks]
    sign = "token => getComputedStyle(token.querySelector('i'), '::before').content"
    assert tokens.nth(0).evaluate(sign) == '"↵"'


def test_an_example_to_press(server, visit):
    """Of the beginnings those that the model can read: this one knows small letters only."""
    page = visit(server.url)
    examples = page.locator("#examples button")
    expect(examples).to_have_text(["Let the model begin", "def", "the"])
    page.get_by_role("button", name="the", exact=True).click()
    expect(page.locator("#stats")).to_contain_text("tokens/s")
    assert page.locator("#output .prompt").text_content() == "the "
    expect(examples).to_have_count(0)
    expect(page.locator("#prompt")).to_have_value("the ")


def test_a_count_of_tokens_against_the_context(server, visit):
    page = visit(server.url)
    room = page.locator("#room")
    expect(room).to_have_text("0 of 1,000 tokens")
    page.locator("#prompt").fill(PROMPT)
    expect(room).to_have_text("12 of 1,000 tokens")
    complete(page, max_tokens=20)
    expect(page.locator("#stats")).to_contain_text("context 32 of 1,000")
    page.locator("#model").select_option("other")
    expect(room).to_have_text("12 of 16 tokens")
    page.locator("#prompt").fill("x" * 20)
    expect(room).to_have_text("20 of 16 tokens: 4 too many")
    expect(page.locator("#prompt")).to_have_accessible_description(re.compile("4 too many"))


def test_going_on_without_the_beginning(server, visit):
    """Of a prompt that is longer than the context, and of a text that has filled it."""
    page = visit(server.url)
    page.locator("#model").select_option("other")
    page.get_by_text("More", exact=True).click()
    settings(page, max_tokens=5, temperature=0, n=2)
    page.locator("#prompt").fill("the tree is so tall")  # 19 tokens; the context is 16
    page.locator("#go").click()
    expect(page.locator("#after .error")).to_contain_text("longer than the model's context")
    page.get_by_role("button", name="Go on, dropping the beginning").click()
    tokens = page.locator("#output .token")
    expect(tokens).to_have_count(5)
    body = {"model": "other", "prompt": "ree is so tall"[-11:], "max_tokens": 5, "temperature": 0}
    first = server.ask("/v1/completions", body)["choices"][0]["text"]
    assert continuation(page) == first
    page.get_by_role("button", name="Next version").click()
    assert continuation(page) == first  # at temperature 0 both are the same
    settings(page, n=1)
    page.locator("#prompt").fill("the tree is")  # 11: with 5 it is full
    page.locator("#go").click()
    expect(tokens).to_have_count(5)
    kept = continuation(page)
    page.get_by_role("button", name="Go on, dropping the beginning").click()
    expect(tokens).to_have_count(10)
    expect(page.locator("#stats")).to_contain_text("beginning dropped")
    assert continuation(page)[:5] == kept
    body["prompt"] = ("the tree is" + kept)[-11:]
    assert continuation(page)[5:] == server.ask("/v1/completions", body)["choices"][0]["text"]
    page.get_by_role("button", name="Go on", exact=True).click()
    expect(tokens).to_have_count(15)


def test_all_settings_are_asked_for(server, visit):
    page = visit(server.url)
    settings(page, temperature=0.77, top_p=0.9, top_k=12, max_tokens=9, seed=3)
    page.get_by_text("More", exact=True).click()
    settings(page, n=3, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.3)
    settings(page, frequency_penalty=-0.2, stop="zz\n\\n\\n\na\\\\n")
    page.locator("#prompt").fill(PROMPT)
    with page.expect_request("**/v1/completions") as asked:
        page.locator("#go").click()
    body = asked.value.post_data_json
    wanted = {"temperature": 0.77, "top_p": 0.9, "top_k": 12, "max_tokens": 9, "seed": 3, "n": 3}
    wanted |= {"min_p": 0.01, "repetition_penalty": 1.1, "presence_penalty": 0.3}
    wanted |= {"frequency_penalty": -0.2, "stop": ["zz", "\n\n", "a\\n"]}
    assert {name: body.get(name) for name in wanted} == wanted
    expect(page.locator("#stats")).to_contain_text("continuation 1 of 3")
    expect(page.locator("#stop")).to_be_hidden()
    texts = []
    for _ in range(3):
        texts.append(continuation(page))
        page.get_by_role("button", name="Next version").dispatch_event("click")
    answers = server.ask("/v1/completions", {**wanted, "model": "long", "prompt": PROMPT})
    assert texts == [choice["text"] for choice in answers["choices"]]
    page.reload()
    expect(page.locator("#more-count")).to_have_text(" (6 set)")
    expect(page.locator("#set-stop")).to_have_value("zz\n\\n\\n\na\\\\n")
    page.locator("#set-stop").fill("a\nb\nc\nd\ne")  # more than the server takes
    expect(page.locator("#help-stop")).to_have_text("at most 4 stop sequences")
    page.locator("#set-temperature").press("ArrowUp")
    expect(page.locator("#set-temperature")).to_have_value("0.82")
    page.locator("#reset").click()
    expect(page.locator("#set-temperature")).to_have_value("0.8")
    expect(page.locator("#more-count")).to_have_text("")
    with page.expect_request("**/v1/completions") as asked:
        page.locator("#go").click()
    names = {"model", "prompt", "temperature", "max_tokens", "seed", "stream"}
    assert set(asked.value.post_data_json) == names | {"logprobs", "return_token_ids"}


def test_a_stop_sequence_within_a_token(server, visit):
    """The token is there as far as the text goes."""
    page = visit(server.url)
    stream = chunk("one", " two") + chunk(" three. ", finish="stop", text=" thr")
    answer_completions(page, stream + "data: [DONE]\n\n")
    page.locator("#go").click()
    expect(page.locator("#output .token")).to_have_text(["one", " two", " thr"])
    page.reload()
    expect(page.locator("#output .token")).to_have_text(["one", " two", " thr"])


def test_copy_as_curl_and_python(server, visit, tmp_path):
    """What is copied runs, and says what the page says."""
    page = visit(server.url, permissions=["clipboard-read", "clipboard-write"])
    settings(page, top_k=5, max_tokens=20, seed=11)
    complete(page)

    def copied(name: str) -> str:
        page.locator(f"#copy-{name}").click()
        expect(page.locator(f"#copy-{name}")).to_have_text("Copied")
        return page.evaluate("navigator.clipboard.readText()")

    command, program = copied("curl"), copied("python")
    assert continuation(page) in run_python(program, tmp_path)
    if shutil.which("curl"):
        shell = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
        assert json.loads(shell.stdout)["choices"][0]["text"] == continuation(page)

    hard = {"model": "a'b", "prompt": 'it\'s "x" $HOME `id` \\ \n!', "top_k": 3, "stop": ["'"]}
    make = "async body => { const s = await import('/snippets.js'); const b = 'http://h';"
    command, program = page.evaluate(f"{make} return [s.curl(body, b), s.python(body, b)] }}", hard)
    words = shlex.split(command)
    assert json.loads(words[words.index("-d") + 1]) == hard
    call = next(
        n for n in ast.walk(ast.parse(program)) if getattr(n, "keywords", 0) and len(n.keywords) > 2
    )
    given = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    assert given.pop("extra_body") == {"top_k": 3} and given == {
        name: value for name, value in hard.items() if name != "top_k"
    }


def test_models_that_come_late(server, visit):
    """What a reload finds kept is drawn before the page knows of any model."""
    page = visit(server.url)
    complete(page, temperature=0, max_tokens=6)
    before = page.locator("#stats").inner_text()
    assert "context" in before
    held = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    go_on = page.get_by_role("button", name="Go on", exact=True)
    expect(go_on).to_be_visible()
    assert "context" not in page.locator("#stats").inner_text()  # it is not known yet
    held[0].continue_()
    expect(page.locator("#stats")).to_contain_text("context")
    go_on.click()
    expect(page.locator("#output .token")).to_have_count(12)


def test_a_reload_keeps_what_was_written(server, visit):
    page = visit(server.url)
    complete(page, temperature=0, max_tokens=12)
    text = continuation(page)
    page.locator("#prompt").fill("not yet asked")
    page.locator("#tab-inside").click()
    page.locator("#inside-prompt").fill("not yet looked at")
    page.locator("#tab-tokens").click()
    long = "the tree is so tall " * 1500
    page.locator("#text").fill(long)
    page.reload()
    expect(page.locator("#text")).to_have_value(long)
    page.locator("#tab-inside").click()
    expect(page.locator("#inside-prompt")).to_have_value("not yet looked at")
    page.locator("#tab-complete").click()
    expect(page.locator("#prompt")).to_have_value("not yet asked")
    assert continuation(page) == text
    expect(page.locator("#stats")).to_contain_text("12 tokens")
    page.get_by_role("button", name="Go on", exact=True).click()  # also from what was kept
    expect(page.locator("#output .token")).to_have_count(24)
    body = {"model": "long", "prompt": PROMPT, "temperature": 0, "max_tokens": 24}
    assert continuation(page) == server.ask("/v1/completions", body)["choices"][0]["text"]
    page.locator("#prompt").fill("ÄÖÜ")  # an error stays as well
    page.locator("#go").click()
    expect(page.locator("#after .error")).to_contain_text("vocabulary")
    page.reload()
    expect(page.locator("#after .error")).to_contain_text("vocabulary")
    page.locator("#prompt").fill(PROMPT)
    settings(page, max_tokens=900)
    page.locator("#go").click()  # and of what was under way
    page.locator("#output .token").nth(2).wait_for()
    page.reload()
    expect(page.locator("#output .token").nth(2)).to_be_visible()
    expect(page.locator("#versions")).to_contain_text("3 of 3")
    kept = page.evaluate(
        """async () => {  // with room for a few versions only, the one that is shown is among them
          const { restore, store, Version } = await import("/versions.js");
          const tokens = Array.from({ length: 9000 }, () => ({ text: "x".repeat(90), logprob: 0 }));
          store(Array.from({ length: 12 }, (_, seed) => new Version({ seed, tokens })), 11);
          const [versions, shown] = restore();
          return [versions.length, versions[shown].seed];
        }"""
    )
    assert kept == [3, 11]


def test_the_sources_write_no_html():
    for path in WEB.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, path.name
    page = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(https?:)?//", page)  # works offline


# ---- errors and the connection ----


def test_a_refused_prompt_says_why(server, visit):
    page = visit(server.url)
    page.locator("#prompt").fill("ÄÖÜ")  # not in the vocabulary
    page.locator("#go").click()
    expect(page.locator("#after .error")).to_contain_text("The server refused this request.")
    expect(page.locator("#after .error p")).to_contain_text("vocabulary")
    expect(page.locator("#after .error button")).to_have_count(0)  # another try would not help
    page.locator("#prompt").fill(PROMPT)
    page.locator("#go").click()
    expect(page.locator("#after .error")).to_have_count(0)
    expect(page.locator("#output .token").nth(3)).to_be_visible()
    page.locator("#tab-inside").click()
    page.locator("#inside-prompt").fill("ÄÖÜ")
    page.locator("#look").click()
    expect(page.locator("#inside-result .error p")).to_contain_text("vocabulary")
    expect(page.locator("#inside-result .error button")).to_have_count(0)


def test_a_busy_server(server, visit):
    page = visit(server.url)
    error = json.dumps({"error": {"message": "too many texts wait", "type": "x"}})
    answer_completions(page, error, 429, {"Retry-After": "3"})
    page.locator("#go").click()
    expect(page.locator("#after .error")).to_contain_text("The server is busy.")
    expect(page.locator("#after .error")).to_contain_text("Try again in 3 seconds.")
    expect(page.locator("#after .error button")).to_have_text("Try again")
    page.unroute("**/v1/completions")
    page.locator("#prompt").fill(PROMPT)
    page.locator("#go").click()
    expect(page.locator("#output .token").nth(3)).to_be_visible()


def test_an_error_in_the_middle_keeps_the_text(server, visit):
    page = visit(server.url)
    error = {"error": {"message": "the engine failed", "type": "server_error"}}
    answer_completions(page, chunk("so", " far") + f"data: {json.dumps(error)}\n\n")
    page.locator("#go").click()
    expect(page.locator("#after .error")).to_contain_text("the engine failed")
    assert continuation(page) == "so far"


def stopped_in_mid_stream(own: Server, page) -> bool:
    """Whether the server stands still with an answer half written; on a busy machine it may have
    been faster than we were."""
    page.locator("#prompt").fill(PROMPT)
    page.locator("#go").click()
    for _ in range(200):  # a little at a time
        own.process.send_signal(signal.SIGSTOP)
        page.wait_for_timeout(100)
        if page.locator("#output .token").count() >= 6:
            break
        own.process.send_signal(signal.SIGCONT)
        time.sleep(0.003)
    if page.locator("#stop").is_visible():
        return True
    own.process.send_signal(signal.SIGCONT)
    page.reload()
    return False


def test_the_server_is_killed_in_mid_stream(folder, visit):
    own = Server(folder)
    try:
        page = visit(own.url)
        settings(page, max_tokens=900, temperature=0)
        assert any(stopped_in_mid_stream(own, page) for _ in range(20))
        own.kill()
        expect(page.locator("#after .cut")).to_contain_text("The connection broke after")
        expect(page.locator("#connection")).to_have_text("Disconnected")
        expect(page.locator("#banner")).to_contain_text("The server does not answer")
        for height in (10_000, 0):
            page.evaluate(f"scrollTo(0, {height})")
            expect(page.locator("#banner")).to_be_in_viewport(ratio=1)
        kept = continuation(page)
        assert 6 <= len(kept) < 900
        expect(page.locator("#stats")).to_contain_text("cut off")
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / "disconnected.png")

        own.start()
        expect(page.locator("#connection")).to_have_text("Connected")  # by itself
        expect(page.locator("#banner")).to_be_hidden()
        page.get_by_role("button", name="Go on from here").click()
        expect(page.locator("#output .token")).to_have_count(900)
        assert continuation(page).startswith(kept)
        body = {"model": "long", "prompt": PROMPT, "temperature": 0, "max_tokens": 900}
        assert continuation(page) == own.ask("/v1/completions", body)["choices"][0]["text"]
    finally:
        own.kill()


def test_a_server_with_a_key(folder, visit):
    own = Server(folder, "--api_key=seasoned")
    try:
        page = visit(own.url)
        expect(page.locator("#banner")).to_contain_text("asks for its API key")
        page.locator("#key").fill("seasoned")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_be_enabled()
        expect(page.locator("#banner")).to_be_hidden()
        complete(page, max_tokens=5)
    finally:
        own.kill()


@pytest.mark.parametrize("view", ["complete", "tokens", "inside", "runs"])
def test_errors_are_in_sight(server, visit, view):
    """On a small screen, under a long text."""
    page = visit(server.url, width=390, height=480)
    error = json.dumps({"error": {"message": "the disk is gone"}})
    paths = {"complete": "v1/completions", "tokens": "tokenizers", "inside": "inspect"}
    page.route(f"**/{paths.get(view, view)}", lambda r: r.fulfill(status=500, body=error))
    page.locator(f"#tab-{view}").click()
    field = {"complete": "#prompt", "inside": "#inside-prompt", "tokens": "#text"}.get(view)
    if field:
        page.locator(field).evaluate("field => (field.style.minHeight = '600px')")
        page.locator(field).fill("the tree\n" * 40)
        page.evaluate("scrollTo(0, 0)")
        page.keyboard.press("Control+Enter")
    page.wait_for_timeout(400 if view == "tokens" else 0)  # typing asks again: it fails again
    alarm = page.locator(f"#view-{view} .error")
    expect(alarm).to_contain_text("the disk is gone")
    expect(alarm).to_be_in_viewport(ratio=1)
    if view != "complete":
        return
    for height in (10_000, 200, 0):  # it stays, wherever one reads
        page.evaluate(f"scrollTo(0, {height})")
        expect(alarm).to_be_in_viewport(ratio=1)
    page.locator("#prompt").press("x")  # it does not stand over what is being mended
    page.evaluate("scrollTo(0, 0)")
    expect(alarm).not_to_be_in_viewport()


# ---- the frame ----


def test_a_slow_link_shows_something_at_once(server, visit):
    """Before any module has come: the field to write into, and what is written stays."""
    page = visit(server.url)
    expect(page.locator("#go")).to_be_enabled()
    held = []
    page.route(re.compile(r"(?<!first)\.js$"), lambda route: held.append(route))  # no answer
    for tab in ("complete", "runs"):
        page.goto(f"{server.url}/#{tab}", wait_until="commit")
        page.reload(wait_until="commit")
        expect(page.locator("[role=tabpanel]:visible")).to_have_id(f"view-{tab}")
    page.goto(f"{server.url}/#complete", wait_until="commit")
    page.reload(wait_until="commit")
    page.locator("#prompt").fill("written early")
    expect(page.locator("#go")).to_be_disabled()
    assert held
    page.unroute_all()
    for route in held:
        with contextlib.suppress(sync_api.Error):  # of a page that was left
            route.continue_()
    expect(page.locator("#go")).to_be_enabled()
    expect(page.locator("#prompt")).to_have_value("written early")


def test_all_modules_are_preloaded():
    """Else the browser learns of one only from another: a journey for each step."""
    modules, todo = set(), ["app.js"]
    while todo:
        text = (WEB / todo.pop()).read_text(encoding="utf-8")
        new = set(re.findall(r'from "\./([\w.]+)"', text)) - modules
        modules |= new
        todo += new
    page = (WEB / "index.html").read_text(encoding="utf-8")
    preloaded = re.findall(r'rel="modulepreload" href="([\w.]+)"', page)
    assert sorted(preloaded) == sorted(modules)
    assert {p.name for p in WEB.glob("*.js")} == modules | {"app.js", "first.js"}


def test_tabs_by_keyboard(server, visit):
    page = visit(server.url)
    page.locator("#tab-complete").focus()
    names = ["tokens", "inside", "runs", "complete"]
    for name in names:
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#tab-{name}")).to_be_focused()
        expect(page.locator(f"#tab-{name}")).to_have_attribute("aria-selected", "true")
        expect(page.locator("[role=tabpanel]:visible")).to_have_id(f"view-{name}")
        assert page.url.endswith(f"#{name}")
    page.keyboard.press("End")
    expect(page.locator("#view-runs")).to_be_visible()
    page.keyboard.press("Home")
    expect(page.locator("#view-complete")).to_be_visible()
    page.reload()
    expect(page.locator("#view-complete")).to_be_visible()
    page.goto(f"{server.url}/#inside")
    expect(page.locator("#view-inside")).to_be_visible()


@pytest.mark.parametrize("width", [320, 390, 820])
def test_nothing_is_wider_than_a_phone(server, visit, width):
    page = visit(server.url, width=width, height=844, has_touch=True, device_scale_factor=2)

    def fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    complete(page, max_tokens=80)
    fits()
    page.locator("#output .token").nth(3).tap()
    expect(page.get_by_role("dialog")).to_be_visible()
    fits()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    token = page.locator("#output .token").nth(3).bounding_box()
    beside = token["y"] + token["height"] <= box["y"] or token["y"] >= box["y"] + box["height"]
    assert beside and token["y"] > 0  # the token stays in sight
    page.screenshot(path=SHOTS / f"alternatives-{width}.png")
    page.keyboard.press("Escape")
    page.locator("#tab-tokens").click()
    page.locator("#text").fill("supercalifragilistic" * 20)
    expect(page.locator(".tokens > span").nth(300)).to_be_attached()
    fits()
    page.locator("#tab-inside").click()
    page.locator("#inside-prompt").fill(PROMPT * 5)
    page.locator("#look").click()
    expect(page.locator("#map")).to_be_visible()
    fits()
    page.screenshot(path=SHOTS / f"inside-{width}.png")
    low = page.locator("#map").bounding_box()["height"] - 12
    page.locator("#map").tap(position={"x": 12, "y": low})
    expect(page.locator("#map-readout")).to_contain_text("attends to")  # and stays to be read
    page.locator("#tab-runs").click()
    expect(page.locator(".chart path").first).to_be_attached()
    fits()
    page.locator(".chart").tap()
    expect(page.locator(".readout-box")).to_contain_text("step")
    fits()


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of rgb(r, g, b)."""
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(server, visit, scheme):
    page = visit(server.url, color_scheme=scheme)

    def colour(name: str) -> float:
        probe = """name => { const e = document.createElement('i'); e.style.color = `var(${name})`;
            document.body.append(e); const c = getComputedStyle(e).color; e.remove(); return c }"""
        return luminance(page.evaluate(probe, name))

    def contrast(a: str, b: str) -> float:
        low, high = sorted((colour(a), colour(b)))
        return (high + 0.05) / (low + 0.05)

    for ground in ("--bg", "--surface", "--sunken"):
        assert (colour(ground) < 0.1) == (scheme == "dark")
        for ink in ("--text", "--muted", "--accent", "--alarm"):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
    assert contrast("--on-accent", "--accent") >= 4.5
    for i in range(6):
        assert contrast("--text", f"--token-{i}") >= 4.5
    for i in range(8):
        assert contrast(f"--run-{i}", "--surface") >= 3  # lines
    complete(page, max_tokens=60)
    other = {"light": "dark", "dark": "light"}[scheme]
    while page.locator("#theme").get_attribute("aria-label") != f"Theme: {other}":
        page.locator("#theme").click()
    assert (colour("--bg") < 0.1) == (other == "dark")
    page.reload()  # it is remembered
    assert (colour("--bg") < 0.1) == (other == "dark")


# ---- tokens ----


def test_tokens_of_what_is_typed(server, visit):
    page = visit(f"{server.url}/#tokens")
    page.locator("#text").fill("the tree")
    names = server.ask("/tokenizers")
    assert {"long", "other", "byte"} <= set(names)
    expect(page.locator("#token-cards .card")).to_have_count(len(names))
    card = page.locator(".card", has=page.get_by_role("heading", name="long", exact=True))
    expect(card.locator(".tokens > span")).to_have_count(8)
    expect(card.locator(".numbers")).to_contain_text("8 tokens")
    expect(card.locator(".numbers")).to_contain_text("1.00 bytes per token")
    ids = server.ask("/tokenize", {"text": "the tree", "tokenizer": "long"})["tokens"]
    assert card.locator(".as-id").all_text_contents() == [str(t["id"]) for t in ids]
    card.locator(".tokens").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(card.locator(".readout")).to_have_text(
        re.compile(rf"Token 2\s*h\s*id {ids[1]['id']}\s*1 byte 68")
    )
    page.get_by_text("Ids").click()
    expect(card.locator(".as-id").first).to_be_visible()
    expect(card.locator(".as-text").first).to_be_hidden()


def test_text_that_a_tokenizer_cannot_write(server, visit):
    """The others show theirs all the same."""
    page = visit(f"{server.url}/#tokens")
    page.locator("#text").fill("日本")
    cards = page.locator("#token-cards .card")
    expect(cards.filter(has_text="Cannot write this text.")).to_have_count(2)  # long and other
    byte = page.locator(".card", has=page.get_by_role("heading", name="byte", exact=True))
    expect(byte.locator(".numbers")).to_contain_text("6 tokens")
    page.locator("#text").fill("")
    expect(page.locator("#token-cards")).to_contain_text("Nothing to show yet.")


# ---- inside ----


def test_attention_and_the_next_token_by_layer(server, visit):
    page = visit(f"{server.url}/#inside")
    expect(page.locator("#inside-result")).to_contain_text("Nothing to look at yet.")
    # of the examples the first that this model, of small letters, can read
    expect(page.locator("#inside-prompt")).to_have_value("how long is a string")
    page.locator("#inside-prompt").fill("")
    page.locator("#look").click()
    expect(page.locator("#inside-result")).to_contain_text("The prompt is empty.")
    page.locator("#inside-prompt").fill("so tall")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".head")).to_have_count(4 * 8)
    seen = server.ask("/inspect", {"model": "long", "prompt": "so tall"})
    page.get_by_role("button", name="Layer 3, head 2").click()
    expect(page.locator("#map-title")).to_have_text("Layer 3, head 2")
    page.locator("#map").focus()
    page.keyboard.press("ArrowUp")  # from the last row, first column
    page.keyboard.press("ArrowRight")
    weight = seen["attention"][2][1][5][1]
    expect(page.locator("#map-readout")).to_have_text(f"l (6) attends to o (2): {weight:.4f}")
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    expect(page.locator("#map-readout")).to_contain_text("Point at a cell")
    rows = page.locator(".lens tbody tr")
    expect(rows).to_have_count(5)
    best = seen["layers"][4][0]
    expect(rows.nth(4).locator("td").first).to_contain_text(f"{100 * best['p']:.1f}"[:3])
    expect(rows.nth(4).locator("td").first).to_have_class("winner")


# ---- numbers and pictures of them ----


def test_axes_and_numbers(server, visit):
    """The modules' functions, called in the browser."""
    page = visit(server.url)

    def call(expression: str):
        names = "['chart', 'dom', 'text'].map((name) => import(`/${name}.js`))"
        modules = f"const [c, d, t] = await Promise.all({names})"
        return page.evaluate(f"async () => {{ {modules}; return {expression} }}")

    assert call("c.ticks(0, 1000, 5)") == [0, 200, 400, 600, 800, 1000]
    assert call("c.ticks(1.37, 1.42, 5)") == [1.37, 1.38, 1.39, 1.4, 1.41, 1.42]
    assert call("c.ticks(3, 3, 5)") == [3]
    assert call("c.logTicks(0.9, 12, 6)") == [1, 2, 5, 10]
    assert call("c.logTicks(1e-6, 1e-2, 4)") == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]
    assert call("c.logTicks(2.1, 2.4, 3)") == [2.1, 2.2, 2.3, 2.4]
    # y_0 = 4 and y_1 = 2 at weight 1/2: (1/4 * 4 + 1/2 * 2) / (3/4)
    assert call("c.smooth([[0, 4], [1, 2]], 0.5)") == [[0, 4], [1, pytest.approx(8 / 3)]]
    spike = call("c.thin(Array.from({length: 9000}, (_, x) => [x, x === 4321 ? 99 : x % 7]), 100)")
    assert len(spike) <= 202 and [4321, 99] in spike and spike[-1] == [8999, 8999 % 7]
    assert spike == sorted(spike)
    assert [call(f"c.nearest([[0], [10], [20]], {x})") for x in (-5, 4, 6, 16, 99)] == [
        0,
        0,
        1,
        2,
        2,
    ]
    assert call("[1, 0.12345, 0.01234, 0.00001, 1e-9, 0].map(d.percent)") == (
        ["100.0%", "12.3%", "1.23%", "0.001%", "<0.001%", "0%"]
    )
    assert call("[0, 1234.5, 1.23456, 0.0012345, 5e-5, 2e9, NaN].map(d.short)") == (
        ["0", "1,235", "1.235", "0.00123", "5.0e-5", "2.00e9", "–"]
    )
    assert call(r"t.visible(' a\n\t\u202e\u0007')") == "·a↵→\\u{202e}\\x07"
    assert call("t.bytesText([0x20, 0xe6, 0x97, 0x61, 0xc3, 0xa9])") == " \\xe6\\x97aé"
    assert call("t.colours([1, 1, 7, 2], 6)") == [1, 2, 1, 2]


# ---- runs ----


def answer_runs(page, count: int, rows=None, **changes) -> None:
    """Runs out-0, out-1, ...: of 40 steps each, the later the lower."""

    def own(i: int) -> list[dict]:
        losses = [5 - i / 20 - step / 20 for step in range(40)]
        rows = [{"iter": s, "loss": loss, "ms": 500.0} for s, loss in enumerate(losses)]
        return [{**row, "tokens_per_s": 8000.0 * (i + 1)} for row in rows]

    listed = [
        {
            "name": f"out-{i}",
            "path": f"out-{i}",
            "step": 40 + i,
            "max_iters": 40 + i,
            "val_loss": 3 - i / 10 if i else None,
            "live": False,
            "settings": {"n_layer": i, "dataset": "books" if i % 2 else "code"},
            "changed": 1e9 - i,
            **changes,
        }
        for i in range(count)
    ]

    def answer(route) -> None:
        i = int(route.request.url.split("/out-")[1].split("?")[0])
        start = int(route.request.url.split("from=")[1])
        lines = rows or own(i)
        route.fulfill(json={"rows": lines[start:], "next": len(lines)})

    page.route("**/runs", lambda route: route.fulfill(json=listed))
    page.route("**/runs/out-*", answer)


def names_of_runs(page) -> list[str]:
    return [box.get_attribute("data-run") for box in page.locator("[data-run]").all()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_many_runs(server, visit, scheme):
    """Each has a colour of its own, and the read-out has ten lines at most."""
    page = visit(server.url, color_scheme=scheme)
    answer_runs(page, 30)
    page.locator("#tab-runs").click()
    expect(page.locator("[data-run]:checked")).to_have_count(3)  # at first
    page.get_by_role("button", name="All", exact=True).click()
    lines = page.locator(".chart path.line")
    expect(lines).to_have_count(30)
    colours = page.evaluate(
        """() => [...document.querySelectorAll(".chart path.line")].map((line) => {
          const context = new OffscreenCanvas(1, 1).getContext("2d");
          context.fillStyle = getComputedStyle(line).stroke;
          context.fillRect(0, 0, 1, 1);
          return `rgb(${[...context.getImageData(0, 0, 1, 1).data.slice(0, 3)]})`;
        })"""
    )
    assert len(set(colours)) == 30
    surface = {"light": "rgb(255, 255, 255)", "dark": "rgb(28, 31, 29)"}[scheme]
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(surface)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour
    box = page.locator(".chart").bounding_box()
    readout = page.locator(".readout-box")
    for height in (40, 250):
        page.mouse.move(box["x"] + 400, box["y"] + height)
        expect(readout).to_contain_text("and 22 more")
        assert readout.locator("tr").count() == 8  # and the head, and how many more: ten
    # of the lowest curves, at whose height the pointer is
    assert {"out-29 training", "out-28 training"} <= set(readout.locator("th").all_text_contents())
    page.locator(".chart").focus()
    page.keyboard.press("End")
    expect(readout).to_contain_text("step 39")
    page.get_by_role("button", name="None", exact=True).click()
    expect(page.locator("#runs-view")).to_contain_text("Tick a run to see its curve.")
    page.locator("[data-run=out-17]").check()
    mark = page.evaluate("getComputedStyle(document.querySelector('.brand .mark')).stroke")
    expect(lines).to_have_css("stroke", mark)  # the first colour is free again


def test_runs_are_filtered_and_sorted(server, visit):
    page = visit(server.url)
    answer_runs(page, 12)
    page.locator("#tab-runs").click()
    expect(page.locator("[data-run]")).to_have_count(12)
    names = [f"out-{i}" for i in range(12)]
    assert names_of_runs(page) == names  # the one last written to comes first
    for order, wanted in {
        "name": names,
        "loss": names[:0:-1] + names[:1],  # one without a loss is the last
        "steps": names[::-1],
    }.items():
        page.locator("#run-order").select_option(order)
        assert names_of_runs(page) == wanted
    page.locator("#run-order").select_option("name")
    for text, wanted in {
        "out-1": ["out-1", "out-10", "out-11"],
        "OUT-1 books": ["out-1", "out-11"],
        "n_layer=1": ["out-1"],
        "n_layer=1 books": ["out-1"],
        "code n_layer=1": [],
        "zebra": [],
    }.items():
        page.locator("#run-filter").fill(text)
        assert names_of_runs(page) == wanted
    expect(page.locator("#run-list")).to_contain_text("No run matches these words.")
    page.locator("#run-filter").fill("books")
    page.get_by_role("button", name="None", exact=True).click()
    page.get_by_role("button", name="All", exact=True).click()  # of those that are listed
    expect(page.locator(".run-list")).to_contain_text("8 shown of 12, 6 listed")  # and 0 and 2
    page.reload()
    expect(page.locator("#run-filter")).to_have_value("books")
    assert names_of_runs(page) == names[1::2]


def test_curves_by_tokens_and_time(server, visit):
    page = visit(server.url)
    answer_runs(page, 2)
    page.locator("#tab-runs").click()
    expect(page.locator(".chart path.line")).to_have_count(2)
    readout = page.locator(".readout-box")
    page.locator("#by").select_option("tokens")
    page.locator(".chart").focus()
    page.keyboard.press("End")
    expect(readout).to_contain_text("tokens 156k")  # 39 steps of 4,000; the other has 8,000
    expect(page.locator(".chart .title")).to_have_text("tokens")
    page.locator("#by").select_option("time")
    page.locator(".chart").focus()
    page.keyboard.press("End")
    expect(readout).to_contain_text("training time, seconds 19.5")
    place = (
        """rows => import("/curves.js").then(c => c.placed(rows).map(p => [p.tokens, p.seconds]))"""
    )
    rows = [
        {"iter": 0, "val_loss": 5, "tokens": 0, "seconds": 0},
        {"iter": 0, "loss": 5, "ms": 1000, "tokens_per_s": 10},
        {"iter": 4, "loss": 4, "ms": 500, "tokens_per_s": 20},
        {"iter": 8, "val_loss": 4, "tokens": 80, "seconds": 5},
        {"iter": 10, "loss": 4, "ms": 500, "tokens_per_s": 20},
        {"iter": 11},
    ]
    wanted = [[0, 0], [0, 0], [40, 2], [80, 5], [100, 6], [100, 6]]
    assert page.evaluate(place, rows) == wanted
    scale = "async () => { const c = await import('/curves.js'); return %s }"
    units = page.evaluate(scale % "[100, 1000, 99999].map((most) => c.BY.time.scale(most)[1])")
    assert units == [f"training time, {unit}" for unit in ("seconds", "minutes", "hours")]


def test_outliers_are_cut_off(server, visit):
    page = visit(server.url)
    rows = [{"iter": i, "loss": 1e6 if i == 20 else 3 - i / 100} for i in range(60)]
    answer_runs(page, 1, rows)
    page.locator("#tab-runs").click()
    page.locator("#smoothing").fill("0")
    key, ticks = page.locator("#chart-key"), page.locator(".chart .grid text")
    expect(key).to_have_text(re.compile(r"validation\. 1 value lies outside and is cut off\.$"))
    expect(ticks.filter(has_text="2.6")).to_have_count(1)
    page.locator("#clip").uncheck()
    expect(key).not_to_contain_text("cut off")
    expect(ticks.filter(has_text="1.00e6")).to_have_count(1)
    usual = "values => import('/chart.js').then(c => c.usual(values))"
    assert page.evaluate(usual, [*range(100), 1e9]) == pytest.approx([5 - 270, 95 + 270])
    # few values, or most of them the same: no outliers (infinities are no JSON)
    for values in ([1, 1e9], [1] * 99 + [7]):
        assert page.evaluate(f"v => ({usual})(v).then(String)", values) == "-Infinity,Infinity"


def test_runs(server, folder, visit):
    page = visit(f"{server.url}/#runs")
    boxes = page.locator("[data-run]")
    expect(boxes.nth(1)).to_be_visible()
    for box in boxes.all():
        box.set_checked(box.get_attribute("data-run") in ("out-long", "out-other"))
    expect(page.locator(".chart path.dots")).to_have_count(2)
    page.locator("#smoothing").fill("0")
    page.locator(".chart").focus()
    page.keyboard.press("End")
    readout = page.locator(".readout-box")
    expect(readout).to_contain_text("step 19")  # of out-other
    last = [
        row["loss"] for row in metrics(folder / "out-other") if row["iter"] == 19 and "loss" in row
    ]
    expect(readout).to_contain_text(f"out-other training{float(f'{last[0]:.4g}'):g}")
    table = page.locator("#run-settings")
    expect(table.get_by_role("row", name="n_embd")).to_contain_text(re.compile("32.*64|64.*32"))
    expect(table.get_by_text("dropout", exact=True)).to_have_count(0)  # the same in both
    page.get_by_label("Only what differs").uncheck()
    expect(table.get_by_text("dropout", exact=True)).to_have_count(1)
    page.locator("#metric").select_option("lr")
    expect(page.locator(".chart path.line")).to_have_count(2)
    page.locator("#log").check()
    expect(page.locator("#chart-key")).to_have_text("learning rate")


def test_a_run_grows_while_it_is_looked_at(server, folder, visit):
    live = folder / "out-live"
    live.mkdir(exist_ok=True)
    (live / "config.json").write_text('{"max_iters": 40}')

    def step(i: int) -> None:
        with open(live / "metrics.jsonl", "a") as f:
            f.write(json.dumps({"iter": i, "loss": 3 - i / 10}) + "\n")

    try:
        step(0), step(1)
        page = visit(f"{server.url}/#runs")
        expect(page.locator("[data-run=out-live]")).to_be_visible()  # else all() may be too early
        for box in page.locator("[data-run]").all():
            box.set_checked(box.get_attribute("data-run") == "out-live")
        row = page.locator(".run", has_text="out-live")
        expect(row).to_contain_text("live")
        for _ in range(100):  # until the curve is there
            page.locator(".chart").focus()
            page.keyboard.press("End")
            if "step 1" in (page.locator(".readout-box").text_content() or ""):
                break
            page.wait_for_timeout(100)
        expect(page.locator(".readout-box")).to_contain_text("step 1")
        step(2), step(10)  # the end of the curve is followed
        expect(row).to_contain_text("step 10 of 40")
        expect(page.locator(".readout-box")).to_contain_text("step 10")
        page.keyboard.press("Home")
        step(11)
        expect(row).to_contain_text("step 11 of 40")
        expect(page.locator(".readout-box")).to_contain_text("step 0")
    finally:
        shutil.rmtree(live)


def test_no_runs_yet(server, visit):
    page = visit(server.url)
    page.route("**/runs", lambda route: route.fulfill(json=[]))
    page.locator("#tab-runs").click()
    expect(page.locator("#runs-view")).to_contain_text("There are no runs yet.")
    error = {"error": {"message": "the disk is gone"}}
    page.route("**/runs", lambda route: route.fulfill(status=500, json=error))
    page.reload()
    expect(page.locator("#runs-view")).to_contain_text("the disk is gone")
    page.unroute("**/runs")
    expect(page.locator("[data-run=out-long]")).to_be_visible()  # found without a reload
    page.route("**/runs", lambda route: route.fulfill(status=500, json=error))
    page.locator("#tab-inside").click()
    page.locator("#tab-runs").click()  # which looks again: the curves stay, under the error
    expect(page.locator("#runs-view")).to_contain_text("the disk is gone")
    expect(page.locator("[data-run=out-long]")).to_be_visible()


# ---- behind a proxy ----


def test_the_page_lives_below_the_prefix_of_a_proxy(visit):
    """The proxy takes the prefix off; what the page asks for without it goes elsewhere."""
    server, elsewhere = model_server(web=WEB), []
    app = create_app(server)

    async def proxied(scope, receive, send):
        if not scope["path"].startswith("/llm/"):
            elsewhere.append(scope["path"])
        await app({**scope, "path": scope["path"].removeprefix("/llm")}, receive, send)

    with running(proxied, server.worker) as process:
        page = visit(f"http://127.0.0.1:{process.port}/llm/")
        complete(page, "One", max_tokens=5)
        assert len(continuation(page)) == 5
    assert elsewhere == []
