"""A report as one HTML file that needs no other: tables, figures and films inside."""

import base64
from html import escape
from pathlib import Path

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1280px; margin: 2em auto; padding: 0 1em; color: #222; background: #fff; }
h1 { font-size: 1.6em; } h2 { font-size: 1.3em; margin-top: 2em; border-bottom: 1px solid #ccc; } h3 { font-size: 1em; margin: 1.5em 0 .4em; }
table { border-collapse: collapse; margin: .6em 0; } .wide { overflow-x: auto; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { background: #f4f4f4; }
img, video { max-width: 100%; } li { margin: .1em 0; }
"""


class Page:
    """Collects what a page shows, in order."""

    def __init__(self, title):
        self.title, self.parts = title, [f"<h1>{escape(title)}</h1>"]

    def heading(self, text, level=2):
        self.parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def text(self, text):
        self.parts.append(f"<p>{escape(text)}</p>")

    def listing(self, sentences):
        self.parts.append("<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>")

    def table(self, rows):
        """Rows of texts, the first of them titles."""
        cells = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for tag, row in zip(["th"] + ["td"] * len(rows), rows, strict=False)]
        self.parts.append('<div class="wide"><table>' + "".join(f"<tr>{row}</tr>" for row in cells) + "</table></div>")

    def picture(self, path, words):
        self.parts.append(f'<img src="{_inside(path, "image/png")}" alt="{escape(words)}">')

    def film(self, path):
        self.parts.append(f'<video controls loop muted autoplay playsinline src="{_inside(path, "video/mp4")}"></video>')

    def html(self):
        """The page as text."""
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(self.title)}</title><style>{STYLE}</style>'
        return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(self.parts) + "\n</body></html>\n"


def _inside(path, kind):
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
