"""The style sheet of the page: light and dark, wide and narrow, paper; system fonts, no files."""

from importlib.resources import files

STYLE = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
