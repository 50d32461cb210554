"""What a page of HTML shows."""

from html.parser import HTMLParser


class TextOf(HTMLParser):
    """The text of a page, the tags that are open, and everything that points elsewhere."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.open, self.links = "", [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
