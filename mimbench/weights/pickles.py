"""What a pickle asks for, found by following its opcodes without running any.

``torch.load(weights_only=True)`` is the lock. This looks before it is opened, so that what is refused is
named in one sentence by any version of torch, and what some let through (items set on what is no dictionary,
containers so deep that comparing them overflows the stack) never gets there.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names of Python 2, which torch.save still writes
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any, NoReturn

from mimbench.weights.allowed import BUILDING, DICTS, LISTS, MODULES, STAND_INS

MOST_DEPTH = 200  # of containers within containers; real files have a dozen
LEAVES = frozenset(
    {
        *("NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2"),
        *("LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
    }
)
EMPTY = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_TUPLE": "tuple", "EMPTY_SET": "set"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class RefusedError(Exception):
    """Says what is wrong with a pickle: the rest of a sentence that begins with the file's name."""


@dataclass
class _Item:
    """What will lie on the unpickler's stack. kind: "global" for what a name stands for."""

    kind: str
    depth: int = 0
    name: str = ""


@dataclass(frozen=True)
class Asked:
    """names: every class and function that a pickle names. value: the last plain one, which of a pickle of
    a number is that number."""

    names: frozenset[str]
    value: Any


def look(file: IO[bytes]) -> Asked:
    """Follow the pickle that begins where ``file`` stands, and leave ``file`` at its end.

    Raises RefusedError where it names anything but what is allowed, or does with it what no checkpoint does.
    """
    followed = _Followed()
    operations = pickletools.genops(file)
    try:
        for opcode, argument, _ in operations:
            if not followed.step(opcode.name, argument):
                _refuse_newer(opcode.name, argument, operations)
    except (LookupError, ValueError, TypeError, OverflowError) as error:  # of genops, or an empty stack
        raise RefusedError(
            "is damaged: its table of contents breaks off or makes no sense; fetch it again"
        ) from error
    return Asked(frozenset(followed.names), followed.value)


class _Followed:
    """What an unpickler's stack would hold, without anything being called."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.value: Any = None
        self.stack: list[_Item] = []
        self.marks: list[int] = []
        self.memo: dict[int, _Item] = {}

    def step(self, operation: str, argument: Any) -> bool:
        """Follow one; False for one that ``weights_only`` does not know."""
        stack = self.stack
        if operation in LEAVES:
            stack.append(_Item("leaf"))
            self.value = argument
        elif operation in EMPTY:
            stack.append(_Item(EMPTY[operation], 1))
        elif operation == "GLOBAL":
            name = full_name(argument)
            _check(name)
            self.names.add(name)
            stack.append(_Item("global", name=name))
        elif operation == "MARK":
            self.marks.append(len(stack))
        elif operation == "TUPLE" or operation in TUPLES:
            items = self._above_mark() if operation == "TUPLE" else self._top(TUPLES[operation])
            named = next((item.name for item in items if item.kind == "global"), "")
            stack.append(_Item("tuple", 1, named))
            self._hold(items)
        elif operation in ("APPEND", "APPENDS"):
            items = self._top(1) if operation == "APPEND" else self._above_mark()
            _expect(stack[-1].kind == "list", "appends to what is no list")
            self._hold(items)
        elif operation in ("SETITEM", "SETITEMS"):
            items = self._top(2) if operation == "SETITEM" else self._above_mark()
            _expect(stack[-1].kind == "dict", "sets items of what is no dictionary")
            self._hold(items)
        elif operation in ("REDUCE", "NEWOBJ"):
            function, *arguments = self._top(2)
            _expect(function.kind == "global", f"calls what {function.name or 'it built'} gives")
            _expect(not function.name.endswith("Storage"), f"calls {function.name}")
            kind = "dict" if function.name in DICTS else "list" if function.name in LISTS else "made"
            stack.append(_Item(kind, 1, function.name))
            self._hold(arguments)
        elif operation == "BUILD":
            items = self._top(1)
            _expect(stack[-1].kind in ("made", "dict", "list"), f"alters {stack[-1].name or 'a plain value'}")
            self._hold(items)
        elif operation == "BINPERSID":
            (reference,) = self._top(1)  # to a tensor's data or, before PyTorch 1.6, to a module's class
            kind = "global" if reference.name in MODULES else "made"
            stack.append(_Item(kind, name=reference.name))
        elif operation in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif operation in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        else:
            return operation in ("PROTO", "STOP")
        return True

    def _top(self, count: int) -> list[_Item]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def _above_mark(self) -> list[_Item]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _hold(self, items: list[_Item]) -> None:
        """Put items into what lies on top."""
        holder = self.stack[-1]
        holder.depth = max([holder.depth, *(item.depth + 1 for item in items)])
        _expect(holder.depth <= MOST_DEPTH, f"nests containers more than {MOST_DEPTH} deep")


def full_name(argument: str) -> str:
    """``module name`` as in a pickle -> ``module.name`` of today's Python."""
    module, _, name = argument.partition(" ")
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def shown(text: str, most: int = 100) -> str:
    """What a file says, fit to be printed: on one line, and nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:most]) + "…" * (len(text) > most)


def _check(name: str) -> None:
    if name not in BUILDING and name not in STAND_INS:
        raise RefusedError(
            f"wants {shown(name)} to be called, which is not among the harmless things that files of weights "
            "hold; nothing of it was run. Take the weights from a source you trust, or have whoever made the "
            "file save its state dict alone"
        )


def _expect(usual: bool, otherwise: str) -> None:
    if not usual:
        raise RefusedError(
            f"{otherwise}, which no file of weights does; nothing of it was run. Take the weights from a "
            "source you trust"
        )


def _refuse_newer(operation: str, argument: Any, rest: Iterator[tuple[Any, Any, int | None]]) -> NoReturn:
    """Say what else a pickle of another protocol names; it is refused either way."""
    recent: list[str] = []
    for name, value in chain([(operation, argument)], ((opcode.name, value) for opcode, value, _ in rest)):
        if name in ("GLOBAL", "INST"):
            _check(full_name(value))
        elif name == "STACK_GLOBAL" and len(recent) == 2:
            _check(full_name(" ".join(recent)))
        elif isinstance(value, str):
            recent = [*recent[-1:], value]
    raise RefusedError(
        "is pickled in another way than torch.save does by default, which cannot be read without running it; "
        "where you trust it, torch.load it and torch.save its state dict"
    )
