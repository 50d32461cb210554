"""The playground's chat in a real browser, with models that know what each animal says."""

import json
import re

import pytest
from helpers.browser import CHROMIUM, run_python
from helpers.made_model import knowing, knows_nothing, knows_text, save
from helpers.server_process import server

from bonsai.tokenizers import ByteTokenizer
from bonsai.tokenizers.chat import TEMPLATES

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")

ANSWERS = {"cat": "meow", "dog": "woof", "cow": "moo", "owl": "hoo"}
PLAIN = TEMPLATES["plain"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A model of animals, the same with little room, one whose answers have no end, and one that
    does not chat."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer, chat = ByteTokenizer(), {"chat_template": PLAIN.to_dict()}
    talks = [[("user", q), ("assistant", a)] for q, a in ANSWERS.items()]
    texts = [
        PLAIN.encode_conversation(tokenizer, [*one, *two])[0] for one in talks for two in talks
    ]
    for name, block_size in (("animals", 400), ("small", 64)):
        model = knowing(texts, tokenizer.vocab_size, block_size=block_size, lags=22)
        save(folder / name, model, tokenizer, **chat)
    knows_nothing(folder / "endless", block_size=1000, **chat)
    knows_text(folder / "plain")
    models = ",".join(f"{name}={name}" for name in ("plain", "animals", "small", "endless"))
    with server(folder, f"--models={models}") as running:
        yield running


def talk(visit, served, model: str = "animals", **options):
    page = visit(f"{served.url}/#chat", **options)
    expect(page.locator("#model")).to_be_enabled()
    page.locator("#model").select_option(model)
    expect(page.locator("#send")).to_be_enabled()
    if not page.locator("#settings").is_visible():
        page.locator("#settings-toggle").click()
    page.locator("#set-temperature").fill("0")
    return page


def say(page, text: str) -> None:
    page.locator("#message").fill(text)
    page.locator("#message").press("Enter")
    expect(page.locator("#hush")).to_be_hidden()


def said(page) -> list[str]:
    return page.locator(".message p").all_text_contents()


def test_a_conversation(served, visit):
    page = talk(visit, served)
    asked = []
    page.on("request", lambda r: asked.append(r) if "chat/completions" in r.url else None)
    expect(page.locator("#talk")).to_contain_text("Your messages")
    say(page, "owl")
    say(page, " cat\n")
    assert said(page) == ["owl", "hoo", "cat", "meow"]
    assert page.locator(".message .label").all_text_contents() == ["You", "animals"] * 2
    bodies = [json.loads(request.post_data) for request in asked]
    contents = [[m["content"] for m in body["messages"]] for body in bodies]
    assert contents == [["owl"], ["owl", "hoo", "cat"]] and bodies[0]["temperature"] == 0
    page.reload()
    expect(page.locator(".message")).to_have_count(4)
    assert said(page) == ["owl", "hoo", "cat", "meow"]
    page.get_by_role("button", name="Another answer").click()
    expect(page.locator("#hush")).to_be_hidden()
    assert said(page) == ["owl", "hoo", "cat", "meow"]
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#message")).to_be_focused()


def test_lines_and_the_system(served, visit):
    """Shift and Enter begin a line; a system's message is sent first; blanks are no message."""
    page = talk(visit, served)
    asked = []
    page.on("request", lambda r: asked.append(r) if "chat/completions" in r.url else None)
    page.get_by_text("System message").click()
    page.locator("#system").fill("Be brief.")
    page.locator("#message").fill("  ")
    page.locator("#message").press("Enter")
    page.locator("#message").fill("cow")
    page.locator("#message").press("Shift+Enter")
    page.keyboard.type("dog")
    page.locator("#send").click()
    expect(page.locator(".message.assistant")).to_have_count(1)
    expect(page.locator("#hush")).to_be_hidden()
    (request,) = asked
    messages = json.loads(request.post_data)["messages"]
    assert messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "cow\ndog"},
    ]


@pytest.mark.parametrize("way", ["button", "key"])
def test_an_answer_is_stopped(served, visit, way):
    page = talk(visit, served, "endless")
    page.locator("#set-max_tokens").fill("900")
    page.evaluate(
        """(way) => new MutationObserver((_, observer) => {
          const text = document.querySelector(".message.assistant p")?.textContent ?? "";
          if (text.length < 4) return;
          observer.disconnect();
          const key = new KeyboardEvent("keydown", { key: "Escape", bubbles: true });
          if (way === "button") document.getElementById("hush").click();
          else document.getElementById("message").dispatchEvent(key);
        }).observe(document.getElementById("talk"), {
          childList: true, subtree: true, characterData: true,
        })""",
        way,
    )
    say(page, "go on")
    expect(page.locator(".message.assistant")).to_contain_text("stopped by you")
    assert 4 <= len(said(page)[1]) < 900


def test_the_oldest_messages_are_forgotten(served, visit):
    page = talk(visit, served, "small")
    for animal in ANSWERS:
        say(page, animal)
    assert said(page) == [text for pair in ANSWERS.items() for text in pair]
    assert page.locator(".message.forgotten").count() >= 2
    expect(page.locator("#talk")).to_contain_text("The model sees only the messages below.")


def test_what_is_refused_goes_back_into_the_field(served, visit):
    page = talk(visit, served, "small")
    say(page, "cow")
    say(page, "x" * 100)
    expect(page.locator("#after-talk .error")).to_contain_text("context length is 64 tokens")
    expect(page.locator("#message")).to_have_value("x" * 100)
    assert said(page) == ["cow", "moo"]
    assert page.locator(".message.forgotten").count() == 0  # they would fit beside a shorter one
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "owl")
    contents = [m["content"] for m in json.loads(asked.value.post_data)["messages"]]
    assert contents == ["cow", "moo", "owl"]
    assert said(page)[-2:] == ["owl", "hoo"] and page.locator("#after-talk .error").count() == 0


@pytest.mark.parametrize(
    ("answer", "title"),
    [
        (lambda route: route.abort(), "The server does not answer."),
        (
            lambda route: route.fulfill(status=429, headers={"Retry-After": "3"}, body="{}"),
            "The server is busy.",
        ),
        (lambda route: route.fulfill(status=500, body="{}"), "The server refused this."),
        (
            lambda route: route.fulfill(
                status=200, body='data: {"choices": [{"delta": {"content": "me"}}]}\n\n'
            ),
            "The server does not answer.",
        ),
    ],
)
def test_a_message_is_asked_again(served, visit, answer, title):
    page = talk(visit, served)
    page.route("**/v1/chat/completions", answer)
    say(page, "cat")
    expect(page.locator("#after-talk .notice")).to_contain_text(title)
    page.unroute_all()
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".message.assistant p")).to_have_text("meow")
    assert said(page) == ["cat", "meow"]


def test_a_model_that_does_not_chat(served, visit):
    page = visit(f"{served.url}/#chat")
    expect(page.locator("#after-talk")).to_contain_text("This model does not chat.")
    expect(page.locator("#message")).to_be_disabled()
    page.get_by_role("button", name="Choose animals").click()
    expect(page.locator("#message")).to_be_enabled()
    say(page, "owl")
    assert len(said(page)) == 2


def test_the_settings_come_along(served, visit):
    """They are the same for both tabs, and what is copied is the request of the tab."""
    page = talk(visit, served)
    page.locator("#tab-complete").click()
    expect(page.locator("#view-complete #set-temperature")).to_have_value("0")
    page.locator("#set-max_tokens").fill("7")
    page.locator("#tab-chat").click()
    expect(page.locator("#view-chat #set-max_tokens")).to_have_value("7")


def test_a_request_for_programs(served, visit, tmp_path):
    page = talk(visit, served)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    say(page, "cat")
    page.locator("#message").fill("dog")  # not sent yet

    def copied(name: str) -> str:
        page.locator(f"#copy-{name}").click()
        expect(page.locator(f"#copy-{name}")).to_have_text("Copied")
        return page.evaluate("navigator.clipboard.readText()")

    program = copied("python")
    assert "client.chat.completions.create(" in program
    assert run_python(program, tmp_path) == "woof\n"
    page.locator("#message").fill("")  # then it is the last answer that is asked for
    assert run_python(copied("python"), tmp_path) == "meow\n"
    assert re.search(r"curl http://[\w.:]+/v1/chat/completions ", copied("curl"))


@pytest.mark.parametrize("width", [320, 390, 820])
def test_a_chat_fits_a_phone(served, visit, width):
    page = talk(visit, served, width=width, height=844)
    say(page, "x" * 90)
    say(page, "owl")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(page.locator("#send")).to_be_in_viewport()


def test_what_a_model_says_is_text(served, visit):
    page = talk(visit, served)
    evil = {"content": "<img src=x onerror=alert(1)>\u202e\x1b"}
    body = f"data: {json.dumps({'choices': [{'delta': evil}]})}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body=body))
    say(page, "cat")
    assert said(page)[1] == "<img src=x onerror=alert(1)>\\u{202e}\\x1b"
    assert page.locator("#talk img").count() == 0
