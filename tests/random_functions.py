"""Random integer functions in the subset that compiles: loops, jumps, branches, early returns; always ending."""

import random


class Writer:
    """Writes one function from a seed. Values stay small: every assignment is reduced modulo a prime."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.names = ["a", "b", "c"] if seed % 2 else ["a", "b", "c", "d"]  # d may have no value: then both must say so
        self.counters = []
        self.made = 0

    def function(self):
        lines = ["import vyre", "def f(a: vyre.i64, b: vyre.i64) -> vyre.i64:", "    c = 1"]
        lines += ["    d = a - b"] if self.random.random() < 0.7 else []
        lines += self.block(1, 0, False) + self.block(1, 0, False)
        return "\n".join([*lines, f"    return {self.small(self.value())}", ""])

    def small(self, value):
        return f"({value}) % 1009 - 300"

    def value(self, depth=0):
        pick, choose = self.random.random(), self.random.choice
        if depth > 2 or pick < 0.3:
            return choose([*self.names, *self.counters, str(self.random.randint(-5, 20))])
        a, b = self.value(depth + 1), self.value(depth + 1)
        if pick < 0.75:
            return f"({a} {choose('+-*&|^')} {b})"
        if pick < 0.82:
            return f"({a} {choose(['//', '%'])} {choose(['3', '7', '8', '-3', '16'])})"
        if pick < 0.9:
            return f"({a} if {self.condition(depth + 1)} else {b})"
        return f"abs({a})" if pick < 0.95 else f"min({a}, {b})"

    def condition(self, depth=0):
        pick, choose = self.random.random(), self.random.choice
        a, b = self.value(depth + 1), self.value(depth + 1)
        if depth > 2 or pick < 0.6:
            return f"({a} {choose(['<', '>', '<=', '>=', '==', '!='])} {b})"
        if pick < 0.7:
            return f"({a} < {b} <= {self.value(depth + 1)})"
        if pick < 0.75:
            return f"(not {self.condition(depth + 1)})"
        if pick < 0.8:
            name = choose(self.names)
            return f"({name} != 0 and 100 // {name} > {self.random.randint(-5, 9)})"
        return f"({self.condition(depth + 1)} {choose(['and', 'or'])} {self.condition(depth + 1)})"

    def block(self, indent, depth, in_loop):
        return [line for _ in range(self.random.randint(1, 4)) for line in self.statement(indent, depth, in_loop)]

    def statement(self, indent, depth, in_loop):
        pad, pick, choose = "    " * indent, self.random.random(), self.random.choice
        inner = lambda loop: self.block(indent + 1, depth + 1, loop)  # noqa: E731
        if depth < 4 and pick < 0.3:
            lines = [f"{pad}if {self.condition()}:", *inner(in_loop)]
            if self.random.random() < 0.2:
                lines += [f"{pad}elif {self.condition()}:", *inner(in_loop)]
            return lines + ([f"{pad}else:", *inner(in_loop)] if self.random.random() < 0.5 else [])
        if depth < 3 and pick < 0.4:
            return self.for_loop(pad, inner)
        if depth < 3 and pick < 0.45:
            self.made += 1
            w = f"w{self.made}"
            test = choose(["True", f"{w} < {self.random.randint(2, 7)} and {self.condition(2)}"])
            head = [f"{pad}{w} = {self.random.randint(0, 3)}", f"{pad}while {test}:", f"{pad}    {w} += 1"]
            return [*head, f"{pad}    if {w} > 12:", f"{pad}        break", *inner(True)]
        if in_loop and pick < 0.53:
            return [pad + choose(["break", "continue"])]
        if pick < 0.57:
            return [f"{pad}return {self.small(self.value())}"]
        if pick < 0.62:
            a, b = self.random.sample("abcd", 2)
            return [f"{pad}{a}, {b} = {self.small(self.value())}, {self.small(self.value())}"]
        name = choose("abcd")
        if pick < 0.7:
            return [f"{pad}{name} += {choose(['1', '2', choose(self.names)])}", f"{pad}{name} = {self.small(name)}"]
        return [f"{pad}{name} = {self.small(self.value())}"]

    def for_loop(self, pad, inner):
        name, integer = self.random.choice(self.names), self.random.randint
        self.made += 1
        i = f"i{self.made}"
        ranges = [
            f"{integer(0, 6)}", f"{integer(-4, 3)}, {integer(-2, 9)}, {integer(1, 3)}", f"{name} % 9",
            f"8, {name} % 5, -{integer(1, 3)}", f"0, 20, {name} % 7 + 1", f"10, -10, {name} % 5 - 6",
        ]  # fmt: skip
        self.counters.append(i)
        lines = [f"{pad}for {i} in range({self.random.choice(ranges)}):", *inner(True)]
        self.counters.pop()
        return lines
