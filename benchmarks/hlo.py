"""The text of compiled programs: what is in them, and what they move."""

import math
import re
from collections import Counter
from typing import NamedTuple


class Exchange(NamedTuple):
    """A collective operation of a program."""

    kind: str
    size: int  # in bytes, of what comes out of it on one chip
    in_loop: bool
    is_async: bool  # goes on while the chip computes


class HLO:
    """The text of a compiled program, and which of it is inside of loops.

    Args:
        text: What `Compiled.as_text` returns.
    """

    _COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
    _CALLED = re.compile(
        r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
        r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
    )
    _COLLECTIVE = re.compile(
        r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\("
    )
    _INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)")
    _ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
    # They move nothing themselves, or another instruction, or what they call, is counted.
    _FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier")

    def __init__(self, text: str):
        self.lines: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in text.splitlines():
            if match := self._COMPUTATION.match(line):
                lines = self.lines[match[1]] = []
                if line.startswith("ENTRY"):
                    self.entry = match[1]
            else:
                lines.append(line)
        whiles = [line for line in self._all() if " while(" in line]
        bodies = [re.search(r"\bbody=%?([\w.-]+)", line)[1] for line in whiles]
        self.in_loops: set[str] = set()
        while bodies:
            name = bodies.pop()
            if name not in self.in_loops:
                self.in_loops.add(name)
                bodies += self._called(name)

    def _all(self) -> list[str]:
        return [line for lines in self.lines.values() for line in lines]

    def _called(self, name: str) -> list[str]:
        return [x for line in self.lines[name] for x in self._called_by(line)]

    def _called_by(self, line: str) -> list[str]:
        found = self._CALLED.findall(line)
        names = [one for one, _ in found] + [x for _, some in found for x in some.split(",")]
        return [x.strip().lstrip("%") for x in names if x]

    def exchanges(self) -> list[Exchange]:
        """All that moves numbers between chips."""
        found: dict[str, Exchange] = {}
        for name, lines in self.lines.items():
            # How the compiler for TPUs marks what goes on while the chip computes.
            starts = any('custom_call_target="AsyncCollectiveStart"' in line for line in lines)
            for line in lines:
                if (match := self._COLLECTIVE.search(line)) is None:
                    continue
                # One exchange is in several fusions: where it starts, goes on and ends.
                channel = re.search(r"channel_id=\d+", line)
                key = channel[0] if channel else line
                arrays = list(self._ARRAY.finditer(match[1]))
                if match[3] and match[2] in ("all-gather", "reduce-scatter"):
                    arrays = arrays[len(arrays) // 2 :]  # what goes in comes before what comes out
                size = sum(map(self._size, arrays))
                starts_here = match[3] is not None and '"is_sync":true' not in line
                is_async = starts or starts_here or (key in found and found[key].is_async)
                found[key] = Exchange(match[2], size, name in self.in_loops, is_async)
        return list(found.values())

    def collectives(self, *, in_loops: bool) -> dict[str, int]:
        """How many exchanges there are, by their kinds."""
        return dict(Counter(x.kind for x in self.exchanges() if x.in_loop == in_loops))

    def hbm_bytes(self, name: str | None = None) -> int:
        """Bytes that a computation, by default all, moves to and from the chip's main memory.

        The compiler's own figure counts what stays on the chip too: an array that is fetched into
        its fast memory (`S(1)` in a layout) counts when it is fetched and when it is used. Loops
        count once, of a conditional the dearest branch.
        """
        found = [self._INSTRUCTION.match(line) for line in self.lines[name or self.entry]]
        rows = [match.groups() for match in found if match]
        shapes = {name: shape for name, shape, *_ in rows}
        total = 0
        for _, shape, kind, rest in rows:
            arrays = list(self._ARRAY.finditer(shape))
            if kind in ("while", "conditional", "call"):
                called = [self.hbm_bytes(x) for x in self._called_by(rest)]
                total += max(called) if kind == "conditional" else sum(called)
            elif kind in ("copy-start", "slice-start"):
                target, source = arrays[:2] if kind == "copy-start" else arrays[1::-1]
                total += self._size(target) * (self._on_hbm(target) + self._on_hbm(source))
            elif kind not in self._FREE and not kind.endswith(("-done", "-update")):
                used = re.findall(r"%([\w.-]+)", re.split(r"\), |\)$", rest)[0])
                arrays += [x for y in used for x in self._ARRAY.finditer(shapes.get(y, ""))]
                total += sum(self._size(array) for array in arrays if self._on_hbm(array))
        return total

    @staticmethod
    def _on_hbm(array: re.Match) -> bool:
        return "S(" not in (array[4] or "")

    @staticmethod
    def _size(array: re.Match) -> int:
        return math.prod(map(int, filter(None, array[3].split(",")))) * int(array[2] or 8) // 8

    def count(self, pattern: str) -> int:
        """How many instructions match."""
        return sum(bool(re.search(pattern, line)) for line in self._all())

    def kernels(self) -> dict[str, int]:
        """Kernels that are not generated for the program's own operations, by their kinds."""
        found = re.compile(
            r'custom_call_target="([^"]+)"|"fusion_backend_config":\{"kind":"([^"]+)"'
        )
        matches = filter(None, map(found.search, self._all()))
        return dict(Counter(match[1] or match[2] for match in matches))

    @property
    def unet_convolutions(self) -> int:
        """Of all UNets, but for what the way back computes or computes again."""
        name = r'(?!.*(?:transpose|rematted))[^"]*\bunet\b[^"]*/conv_general_dilated"'
        return self.count(rf'\b(?:convolution|custom-call)\(.*op_name="{name}')  # cuDNN's
