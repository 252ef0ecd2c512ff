"""Shapes, dtypes and units into the reference: they stand as comments beside the signatures.

    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16

comes before what the docstring says of the parameter, if it says anything; the comment behind a
field of a dataclass becomes the field's description.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

import griffe


@cache
def comments(file: Path) -> dict[int, str]:
    """Line → the comment that stands behind its code."""
    lines = file.read_text("utf-8").splitlines()
    tokens = tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline)
    return {
        t.start[0]: t.string.lstrip("# ")
        for t in tokens
        if t.type == tokenize.COMMENT
        and lines[t.start[0] - 1][: t.start[1]].strip()
        and not re.match(r"# *(fmt|type|noqa|pragma|ruff)\b", t.string)
    }


def described(docstring: str) -> set[str]:
    """The parameters that a section `Args:` names."""
    section = re.search(r"^Args:\n((?: +.*\n?|\n)*)", docstring, re.MULTILINE)
    return set(re.findall(r"^    (\w+):", section[1], re.MULTILINE)) if section else set()


class Shapes(griffe.Extension):
    def on_function_instance(self, *, node: Any, func: griffe.Function, **_: Any) -> None:
        if func.docstring is None or not isinstance(node, ast.FunctionDef):
            return
        beside = comments(Path(func.filepath))
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        text = func.docstring.value.rstrip()
        named = described(text)
        new = []
        for argument in every:
            comment = beside.get(argument.lineno)
            if comment is None or argument.lineno == node.lineno:
                continue
            if argument.arg in named:
                entry = re.compile(rf"^(    {argument.arg}:) ", re.MULTILINE)
                text = entry.sub(lambda found, c=comment: f"{found[1]} {c}; ", text, count=1)
            else:
                new.append(f"    {argument.arg}: {comment}")
        if new and named:
            text = text.replace("Args:\n", "Args:\n" + "\n".join(new) + "\n", 1)
        elif new:
            text += "\n\nArgs:\n" + "\n".join(new)
        if node.returns is not None and not re.search(r"^Returns:", text, re.MULTILINE):
            comment = beside.get(node.returns.end_lineno or 0)
            if comment and node.returns.lineno > node.lineno:
                text += f"\n\nReturns:\n    {comment}"
        func.docstring.value = text

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        if attr.docstring is None and isinstance(node, ast.AnnAssign):
            comment = comments(Path(attr.filepath)).get(node.lineno)
            if comment:
                attr.docstring = griffe.Docstring(comment, lineno=node.lineno, parent=attr)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """What `__init__` keeps without a word on it is no part of the reference."""
        begin = cls.members.get("__init__")
        if not isinstance(begin, griffe.Function):
            return
        for name, member in list(cls.members.items()):
            inside = (begin.lineno or 0) <= (member.lineno or 0) <= (begin.endlineno or 0)
            if isinstance(member, griffe.Attribute) and inside and member.docstring is None:
                del cls.members[name]
