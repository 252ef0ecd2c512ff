"""Reads the compiled CUDA kernels: what each takes of a multiprocessor, and its instructions.

Everything comes from `cuobjdump` on the object files of a build; nothing is compiled or run.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from gpu_flow import Instruction, Loops, divisions_in_loops, main_loop

# Of every block, from 9.0 on, if it uses dynamic shared memory: cuobjdump counts it as static.
RESERVED_SHARED = 1024


class ToolError(RuntimeError):
    """A program that is needed is missing, or did not do what it should."""


def find_tool(name: str) -> str:
    """On PATH, else in the Triton package, which brings NVIDIA's."""
    found = shutil.which(name)
    if found is not None:
        return found
    spec = importlib.util.find_spec("triton")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "backends" / "nvidia" / "bin" / name
        if path.is_file():
            return str(path)
    raise ToolError(f"{name} is neither on PATH nor in a Triton package; install either")


def run(command: Sequence[str | Path], text: str | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ToolError(f"{Path(command[0]).name} failed: {done.stderr.strip()}")
    return done.stdout


def object_files(folder: Path) -> list[Path]:
    """Those of the CMake target cscl_cuda; else whatever lies in the folder itself."""
    found = sorted(folder.glob("**/cscl_cuda.dir/**/*.cu.o"))
    found = found or sorted(folder.glob("*.o"))
    if not found:
        raise ToolError(f"{folder} has no CUDA objects; build them first: cmake --build {folder}")
    return found


# ---- what cuobjdump says ------------------------------------------------------------------------


class Resources(NamedTuple):
    """What the compiler gave a kernel; bytes, but for the registers."""

    registers: int
    stack: int
    shared: int  # static
    local: int
    constant: int


ARCHITECTURE = re.compile(r"^arch = sm_(\d+)", re.MULTILINE)
FUNCTION = re.compile(r"^\s*Function\s*:?\s+(\S+?):?\s*$")
FIGURE = re.compile(r"(\w+(?:\[0\])?):(\d+)")
# /*0120*/  @!P0 BRA 0x340 ;
INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;"
)


def by_architecture(text: str) -> Iterator[tuple[int, list[str]]]:
    """(80, lines) for each piece of machine code that the text is about."""
    marks = [*ARCHITECTURE.finditer(text)]
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        yield int(mark[1]), text[mark.end() : following.start() if following else None].splitlines()


def parse_resources(text: str) -> dict[tuple[int, str], Resources]:
    """`cuobjdump --dump-resource-usage`, by architecture and mangled name."""
    found = {}
    for architecture, lines in by_architecture(text):
        name = None
        for line in lines:
            function = FUNCTION.match(line)
            if function:
                name = function[1]
            elif name is not None and "REG:" in line:
                figures = {key: int(value) for key, value in FIGURE.findall(line)}
                shared = figures["SHARED"]
                if architecture >= 90 and shared >= RESERVED_SHARED:
                    shared -= RESERVED_SHARED
                found[architecture, name] = Resources(
                    figures["REG"],
                    figures["STACK"],
                    shared,
                    figures["LOCAL"],
                    figures.get("CONSTANT[0]", 0),
                )
                name = None
    return found


def parse_instructions(text: str) -> dict[tuple[int, str], list[Instruction]]:
    """`cuobjdump -sass`, by architecture and mangled name."""
    found: dict[tuple[int, str], list[Instruction]] = {}
    for architecture, lines in by_architecture(text):
        current: list[Instruction] = []
        for line in lines:
            match = INSTRUCTION.match(line)
            if match:
                place, predicate, name, operands = match.groups()
                current.append(Instruction(int(place, 16), name, operands, predicate is not None))
                continue
            function = FUNCTION.match(line)
            if function:
                current = found.setdefault((architecture, function[1]), [])
    return found


# ---- facts about a kernel's instructions --------------------------------------------------------

DOUBLE = re.compile(r"^(D(ADD|MUL|FMA|SETP|MNMX|SET|MMA)\b|MUFU\.(RCP|RSQ)64|[A-Z0-9]+\S*\.F64\b)")
LOCAL = re.compile(r"^(LDL|STL)\b")


def facts(code: Sequence[Instruction]) -> dict[str, Any]:
    """What --check and the page need to know of a kernel's instructions."""
    names = [instruction.name for instruction in code]

    def count(pattern: str) -> int:
        return sum(1 for name in names if re.match(pattern, name))

    loops = Loops.of(code)
    loop, divisions = main_loop(loops), divisions_in_loops(loops)
    return {
        "instructions": len(code),
        "load_128": count(r"LDG\b.*\.128"),
        "store_128": count(r"STG\b.*\.128"),
        "load_64": count(r"LDG\b.*\.64"),
        "store_64": count(r"STG\b.*\.64"),
        "shared_load_128": count(r"LDS\b.*\.128"),
        "shared_store_128": count(r"STS\b.*\.128"),
        "double": sum(1 for name in names if DOUBLE.match(name)),
        "local_memory": sum(1 for name in names if LOCAL.match(name)),
        "inner_divisions": divisions.inner,
        "outer_divisions": divisions.outer,
        "loop_instructions": loop.instructions,
        "loop_arithmetic": loop.arithmetic,
        "loop_special": loop.special,
    }


# ---- names --------------------------------------------------------------------------------------


def demangle(names: Sequence[str]) -> dict[str, str]:
    if not names:
        return {}
    text = run([find_tool("c++filt")], "\n".join(names) + "\n")
    return dict(zip(names, text.splitlines(), strict=True))


def split_arguments(text: str) -> tuple[str, list[str]]:
    """`name<a, b<c>>` as name and its arguments; names without their namespaces."""
    head, _, rest = text.partition("<")
    parts, depth, begin = [], 0, 0
    for i, letter in enumerate(rest):
        if letter in "<(":
            depth += 1
        elif letter in ">)":
            depth -= 1
            if depth < 0:
                parts.append(rest[begin:i])
                break
        elif letter == "," and depth == 0:
            parts.append(rest[begin:i])
            begin = i + 1
    return head.rpartition("::")[2].split()[-1], [part.strip() for part in parts]


CLASSES = {"Exactly": "{}", "UpTo": "to {}", "Rolled": "any"}
RULES = {"PowerRule": "power", "ExponentialRule": "exponential"}
KINDS = ("value", "value and gradient", "gradient")
ELEMENTS = {"float": "float32", "Float16": "float16", "BFloat16": "bfloat16"}


def describe(operator: str, demangled: str) -> dict[str, str]:
    """Readable parts of a kernel's name.

    Args:
        operator: the name of the file that it is compiled in.
        demangled: as c++filt gives it.

    Returns:
        `operator` and `kernel`; and where there are such variants `classes` (19, `to 16`, `any`),
        `rule`, `labels`, `kind`, `element`, `width` (elements that a thread moves at once) and
        `pack` (pixels of a thread).
    """
    plain = demangled.replace("(anonymous namespace)::", "").removeprefix("void ")
    plain = re.sub(r"\bcscl::|\bcuda::|\bdevice::|\bstatic ", "", plain)
    kernel, arguments = split_arguments(plain.partition("(")[0] if "<" not in plain else plain)
    found = {"operator": operator, "kernel": kernel}

    def take(argument: str) -> None:
        head, inner = split_arguments(argument)
        if head in CLASSES:
            found["classes"] = CLASSES[head].format(*inner)
        elif head in RULES:
            found["rule"] = RULES[head]
        elif head in ELEMENTS:
            found["element"] = ELEMENTS[head]
        elif head in ("Rows", "Tiles"):
            found["walk"] = head.lower()
            for part in inner:
                take(part)
        elif head.endswith("Body"):
            found["body"] = head.removesuffix("Body").lower()
            for part in inner:
                take(part)
        elif "LossKind" in argument:
            number = int(re.findall(r"\d+", argument)[-1])
            found["kind"] = KINDS[number]
        elif argument in ("true", "false"):
            if kernel == "compare_classes":
                found["rule"] = "softmax" if argument == "true" else "l1"
            else:
                found["labels"] = "given" if argument == "true" else "own"
        elif argument.isdigit():
            found["pack" if kernel.startswith("walk_") else "width"] = argument

    for argument in arguments:
        take(argument)
    if kernel == "walk_upsampled_rolled":
        found["classes"] = "any"
    return found


KEYS = ("classes", "rule", "labels", "kind", "body", "walk", "element", "width", "pack")
UNITS = {"classes": "{} classes", "labels": "{} labels", "pack": "{} pixels", "width": "{} wide"}


def short_name(kernel: Mapping[str, Any]) -> str:
    """`walk_planes, 19 classes, power, 4 pixels`."""
    shown = [k for k in KEYS if k in kernel and (k != "body" or kernel[k] in BODIES_TOLD_APART)]
    return ", ".join([kernel["kernel"], *(UNITS.get(k, "{}").format(kernel[k]) for k in shown)])


# class_threshold.cu has two; elsewhere the operator says it.
BODIES_TOLD_APART = ("counting", "ranking")


def read_object(path: Path) -> list[dict[str, Any]]:
    """The kernels of one file: names, and by architecture the resources and the facts."""
    tool = find_tool("cuobjdump")
    resources = parse_resources(run([tool, "--dump-resource-usage", path]))
    instructions = parse_instructions(run([tool, "-sass", path]))
    missing = set(resources) ^ set(instructions)
    if missing:
        raise ToolError(f"{path.name}: resources or instructions of {missing} are missing")
    operator = path.name.partition(".")[0]
    found: list[dict[str, Any]] = []
    for mangled, demangled in demangle(sorted({name for _, name in resources})).items():
        kernel: dict[str, Any] = describe(operator, demangled)
        kernel["architectures"] = {
            str(architecture): {
                **resources[architecture, name]._asdict(),
                **facts(instructions[architecture, name]),
            }
            for architecture, name in sorted(resources)
            if name == mangled
        }
        found.append(kernel)
    return found


def read_objects(files: Sequence[Path]) -> list[dict[str, Any]]:
    """All kernels, in a fixed order."""
    largest_first = sorted(files, key=lambda path: path.stat().st_size, reverse=True)
    with ProcessPoolExecutor() as pool:
        found = [kernel for kernels in pool.map(read_object, largest_first) for kernel in kernels]
    found.sort(key=lambda k: [k["operator"], k["kernel"], *(str(k.get(key, "")) for key in KEYS)])
    return found
