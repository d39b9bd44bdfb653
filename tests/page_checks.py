"""What holds of every page: it is whole, asks for nothing, and runs no code but its own."""

import base64
import hashlib
import html.parser
import json


class Page(html.parser.HTMLParser):
    """A page's tags, texts by the id of their element, and what its data block holds."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.texts, self.inline, self._open = [], [], {"script": [], "style": []}, []
        self.data = None
        self.feed(content)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, text):
        inside = self._open[-1] if self._open else ""
        if inside == "script" and self.tags[-1][1].get("type") == "application/json":
            self.data = json.loads(text)
        elif inside in self.inline:
            self.inline[inside].append(text)
        else:
            self.texts.append(text)


def check_page(content):
    """The `Page`; fails if it could ask for anything, or run what is not its own script."""
    page = Page(content)
    attributes = [(name, value) for _, found in page.tags for name, value in found.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name in ("style", "src", "href")]
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "object", "embed", "base", "form", "img"})
    (policy,) = [found["content"] for _, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules.keys() <= {"default-src", "base-uri", "form-action", "img-src", "style-src", "script-src"}
    assert rules.get("img-src", "data:") == "data:"
    for kind in ("script", "style"):
        (own,) = page.inline[kind]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'", f"the policy is not for the page's own {kind}"
    return page
