"""Loops in machine code: which there are, and what one round of a kernel's main loop executes.

Loops are found as compilers define them. A branch back to a block that every way to the branch
leads through closes a loop; the blocks from which it can be reached without passing that block
again are the loop's. Code that the compiler has moved behind the end of a kernel is thus not taken
for a loop when it jumps back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Instruction(NamedTuple):
    """One line of `cuobjdump -sass`."""

    address: int
    name: str  # with its suffixes: LDG.E.128
    operands: str
    predicated: bool


class LoopCount(NamedTuple):
    """Instructions of one round, by the longest way through it."""

    instructions: int = 0
    arithmetic: int = 0  # of floats, without the special ones
    special: int = 0  # MUFU: exponential, logarithm, reciprocal


ARITHMETIC = re.compile(r"^F(ADD|MUL|FMA|MNMX|SETP|SEL|SET|CHK|SWZADD)")
SPECIAL = re.compile(r"^MUFU\b")
# How the compiler begins a division of integers: the divisor becomes a float, rounded up, for its
# reciprocal. 64 bits are divided in a routine of their own, which begins the same way.
DIVISION = re.compile(r"^I2F\b.*\.RP\b")
# The 64-bit division of csrc/core/bilinear.h, which is done in floats, has two of these.
DIVISION_STEP = re.compile(r"^F2I\b.*[SU]64\b")
TARGET = re.compile(r"0x([0-9a-f]+)\s*$")


class Flow:
    """Basic blocks of a kernel and what follows them; a called routine is not among what follows.

    CALL.REL.NOINC is a jump, and the compiler takes it for far branches as well as for calls: it is
    a call if the code there returns.
    """

    def __init__(self, code: Sequence[Instruction]) -> None:
        self.code = code
        self.places = {instruction.address: i for i, instruction in enumerate(code)}
        self.joins = self._joins()
        self.routines: dict[int, list[Instruction]] = {}
        starts = {0}
        for i in range(len(code)):
            targets, goes_on = self._next(i)
            if targets or not goes_on:
                starts.update(targets)
                starts.add(i + 1)
        starts.discard(len(code))
        self.starts = sorted(starts)
        self.ends = [*self.starts[1:], len(code)]
        index = {start: block for block, start in enumerate(self.starts)}
        self.after: list[list[int]] = []
        for block in range(len(self.starts)):
            targets, goes_on = self._next(self.ends[block] - 1)
            following = [index[target] for target in targets]
            if goes_on and self.ends[block] in index:
                following.append(index[self.ends[block]])
            self.after.append(list(dict.fromkeys(following)))
        self.before: list[list[int]] = [[] for _ in self.starts]
        for block, following in enumerate(self.after):
            for other in following:
                self.before[other].append(block)

    def _target(self, instruction: Instruction) -> int | None:
        match = TARGET.search(instruction.operands)
        return self.places.get(int(match[1], 16)) if match else None

    def _joins(self) -> dict[str, set[int]]:
        """Where the threads of each barrier register go on together."""
        found: dict[str, set[int]] = {}
        for instruction in self.code:
            if instruction.name.startswith("BSSY"):
                target = self._target(instruction)
                if target is not None:
                    found.setdefault(instruction.operands.split(",")[0], set()).add(target)
        return found

    def _next(self, i: int) -> tuple[list[int], bool]:
        """Targets of instruction i, and whether the one behind it may be next."""
        instruction = self.code[i]
        kind = instruction.name.split(".")[0]
        if kind in ("BRA", "JMP"):
            target = self._target(instruction)
            conditional = instruction.predicated or "," in instruction.operands
            return ([] if target is None else [target]), conditional
        if kind == "CALL":
            target = self._target(instruction)
            if target is None or self.routine(target):
                return [], True
            return [target], instruction.predicated
        if kind == "BSYNC":
            joins = self.joins.get(instruction.operands.strip(), set())
            if not joins or i + 1 in joins:
                return [], True
            return sorted(joins), False  # moved behind the end of the kernel
        if kind in ("EXIT", "RET", "BRX", "JMX", "KILL"):
            return [], instruction.predicated
        return [], True

    # ---- loops ----

    def order(self) -> list[int]:
        """The blocks that the start leads to, each before what follows it but for loops."""
        finished: list[int] = []
        seen = {0}
        stack = [(0, iter(self.after[0]))]
        while stack:
            block, following = stack[-1]
            for other in following:
                if other not in seen:
                    seen.add(other)
                    stack.append((other, iter(self.after[other])))
                    break
            else:
                finished.append(block)
                stack.pop()
        return finished[::-1]

    def dominators(self, order: Sequence[int]) -> dict[int, int]:
        """For each block the last one that every way to it leads through (Cooper, Harvey and
        Kennedy)."""
        place = {block: i for i, block in enumerate(order)}
        found = {0: 0}
        changed = True
        while changed:
            changed = False
            for block in order[1:]:
                new: int | None = None
                for other in self.before[block]:
                    if other not in found:
                        continue
                    if new is None:
                        new = other
                        continue
                    a, b = other, new
                    while a != b:
                        while place[a] > place[b]:
                            a = found[a]
                        while place[b] > place[a]:
                            b = found[b]
                    new = a
                assert new is not None
                if found.get(block) != new:
                    found[block] = new
                    changed = True
        return found

    def loops(self) -> dict[int, set[int]]:
        """The blocks of each loop, by the block that it begins with."""
        if not self.code:
            return {}
        order = self.order()
        dominator = self.dominators(order)

        def dominates(a: int, b: int) -> bool:
            while b != a and b != 0:
                b = dominator[b]
            return a == b

        found: dict[int, set[int]] = {}
        for block in order:
            for header in self.after[block]:
                if not dominates(header, block):
                    continue
                body = found.setdefault(header, {header})
                todo = [block]
                while todo:
                    other = todo.pop()
                    if other not in body:
                        body.add(other)
                        todo += [b for b in self.before[other] if b in dominator]
        # A branch to itself ends every kernel as padding, and is none.
        return {
            header: body
            for header, body in found.items()
            if len(body) > 1 or self.ends[header] - self.starts[header] > 1
        }

    # ---- what the blocks execute ----

    def instructions(self, block: int) -> Sequence[Instruction]:
        return self.code[self.starts[block] : self.ends[block]]

    def count(self, block: int) -> LoopCount:
        names = [instruction.name for instruction in self.instructions(block)]
        return LoopCount(
            len(names),
            sum(1 for name in names if ARITHMETIC.match(name)),
            sum(1 for name in names if SPECIAL.match(name)),
        )

    def routine(self, begin: int) -> list[Instruction]:
        """What is executed from there to the return; empty if nothing returns."""
        if begin not in self.routines:
            self.routines[begin] = []  # while it is looked at: a jump into itself is no call
            seen, todo = set[int](), [begin]
            while todo:
                i = todo.pop()
                if i in seen or i >= len(self.code):
                    continue
                seen.add(i)
                targets, goes_on = self._next(i)
                todo += [*targets, i + 1] if goes_on else targets
            inside = [self.code[i] for i in sorted(seen)]
            if any(instruction.name.startswith("RET") for instruction in inside):
                self.routines[begin] = inside
        return self.routines[begin]

    def called(self, instruction: Instruction) -> list[Instruction]:
        begin = self._target(instruction) if instruction.name.startswith("CALL") else None
        return [] if begin is None else self.routine(begin)

    def divides(self, block: int) -> int:
        """Divisions of integers in a block, those in called routines included."""
        found = steps = 0
        for instruction in self.instructions(block):
            inside = [instruction, *self.called(instruction)]
            found += any(DIVISION.match(each.name) for each in inside)
            steps += DIVISION_STEP.match(instruction.name) is not None
        return found + (steps + 1) // 2


class Loops(NamedTuple):
    """The loops of a kernel, by the blocks that they begin with."""

    flow: Flow
    all: dict[int, set[int]]

    @classmethod
    def of(cls, code: Sequence[Instruction]) -> Loops:
        flow = Flow(code)
        return cls(flow, flow.loops())

    def inside(self, header: int) -> set[int]:
        """The blocks of the loops within one."""
        body = self.all[header]
        return set().union(*(self.all[h] for h in body if h in self.all and h != header))


class Divisions(NamedTuple):
    """Divisions of integers in loops that have no loop inside, and in the others."""

    inner: int
    outer: int


def divisions_in_loops(loops: Loops) -> Divisions:
    """It sees divisions by what is not known while compiling: of 32 bits in place, of 64 in their
    routine or in floats, and both branches of a choice between the two.

    It cannot see how often they run: one that is run once for a row counts as one that is run for
    every pixel. What the compiler has unrolled completely is no loop. Divisions by constants are
    multiplications, and none; of a division whose divisor stays the same the compiler may compute
    the reciprocal before the loop, and what is left is not seen, a multiplication and corrections.
    """
    inner: set[int] = set()
    for header, body in loops.all.items():
        if not loops.inside(header):
            inner |= body
    outer = set().union(*loops.all.values()) - inner
    return Divisions(*(sum(loops.flow.divides(block) for block in s) for s in (inner, outer)))


def main_loop(loops: Loops) -> LoopCount:
    """One round of the longest loop, by the longest way through it; without the loops inside."""
    flow = loops.flow
    if not loops.all:
        return LoopCount()
    sizes = {h: sum(len(flow.instructions(b)) for b in body) for h, body in loops.all.items()}
    first = max(sizes, key=lambda header: sizes[header])
    whole, inside = loops.all[first], loops.inside(first)
    order = [block for block in flow.order() if block in whole]
    place = {block: i for i, block in enumerate(order)}
    longest: dict[int, LoopCount] = {}
    for block in order:
        weight = LoopCount() if block in inside else flow.count(block)
        before = [
            longest[b] for b in flow.before[block] if b in longest and place[b] < place[block]
        ]
        so_far = max(before, default=LoopCount()) if block != first else LoopCount()
        longest[block] = LoopCount(*(a + b for a, b in zip(so_far, weight, strict=True)))
    return max(longest.values())
