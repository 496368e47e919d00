"""Read an HTML page as a reader sees it, and check that its tags are closed in order."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """The tags, addresses and text of a page.

    Attributes:
        tags: (name, attributes) of each tag.
        addresses: every value of src, srcset, href, data and action.
        text: all text outside of style sheets; `words` is the same with single blanks.
    """

    VOID = ("meta", "img", "source", "br")

    def __init__(self, html: str):
        super().__init__()
        self._open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.addresses: list[str] = []
        self.html, self.text = html, ""
        self.feed(html)
        assert self._open == []

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        names = ("src", "srcset", "href", "data", "action")
        self.addresses += [value for name, value in attrs if name in names]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data

    def section(self, anchor: str) -> str:
        """Return the HTML of a section; empty where it is missing."""
        start = self.html.find(f'<section id="{anchor}">')
        return "" if start < 0 else self.html[start : self.html.index("</section>", start)]
