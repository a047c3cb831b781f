"""Evaluate the operation of an elementwise CUDA kernel on NumPy arrays.

Enough of C++ for what elementwise kernels mostly hold: assignments to outputs and to local
variables, arithmetic, comparisons, the ternary operator, casts and mathematical functions.
Anything else, such as ``if``, loops, indexing or ``_ind``, raises NotImplementedError.
"""

import re

import ml_dtypes
import numpy as np

TYPES = {
    "bool": np.bool_,
    "char": np.int8,
    "short": np.int16,
    "int": np.int32,
    "unsigned": np.uint32,
    "long": np.int64,
    "size_t": np.uint64,
    "ptrdiff_t": np.int64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float": np.float32,
    "double": np.float64,
}

FUNCTIONS = {
    "abs": np.abs,
    "ceil": np.ceil,
    "conj": np.conj,
    "copysign": np.copysign,
    "cos": np.cos,
    "exp": np.exp,
    "exp2": np.exp2,
    "fabs": np.abs,
    "floor": np.floor,
    "fma": lambda x, y, z: x * y + z,
    "fmax": np.fmax,
    "fmin": np.fmin,
    "hypot": np.hypot,
    "ilogb": lambda x: np.frexp(x)[1] - 1,
    "isfinite": np.isfinite,
    "isinf": np.isinf,
    "isnan": np.isnan,
    "ldexp": np.ldexp,
    "log": np.log,
    "log2": np.log2,
    # C's max and min compare with <, so a NaN in the first place passes and in the second not.
    "max": lambda x, y: np.where(x < y, y, x),
    "min": lambda x, y: np.where(y < x, y, x),
    "norm": lambda x: x.real * x.real + x.imag * x.imag,
    "pow": np.power,
    "rint": np.rint,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "signbit": np.signbit,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "tan": np.tan,
    "tanh": np.tanh,
}

TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fFlLuU]*)"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<operator>\+=|-=|\*=|/=|==|!=|<=|>=|&&|\|\||[-+*/%<>=!?:(),.&|^~])"
    r")"
)


def divide(x, y):
    """Divide as C does: integers towards zero."""
    if np.result_type(x, y).kind in "iub":
        return np.trunc(np.true_divide(x, y)).astype(np.result_type(x, y))
    return np.true_divide(x, y)


# From the loosest to the tightest binding.
BINARY = (
    {"||": np.logical_or},
    {"&&": np.logical_and},
    {"|": np.bitwise_or},
    {"^": np.bitwise_xor},
    {"&": np.bitwise_and},
    {"==": np.equal, "!=": np.not_equal},
    {"<": np.less, ">": np.greater, "<=": np.less_equal, ">=": np.greater_equal},
    {"+": np.add, "-": np.subtract},
    {"*": np.multiply, "/": divide, "%": np.fmod},
)

ASSIGNMENTS = {"=": None, "+=": np.add, "-=": np.subtract, "*=": np.multiply, "/=": divide}


def widened(value):
    """Return a value as C computes with it: half precision types as float32."""
    if getattr(value, "dtype", None) in (np.float16, ml_dtypes.bfloat16):
        return value.astype(np.float32)
    return value


class Evaluator:
    """One run of an operation.

    Parameters
    ----------
    operation : str
        C++ statements, as for ``cupy.ElementwiseKernel``.
    values : dict
        NumPy arrays by name; those of assigned names are replaced.
    dtypes : dict
        The type of each name, to which assignments round.
    types : dict
        Type parameters, such as ``T``, and what they stand for.
    """

    def __init__(self, operation, values, dtypes, types):
        self.values = values
        self.dtypes = dict(dtypes)
        self.types = TYPES | types
        self.operation = operation

    def run(self):
        """Run all statements; the results are in ``values``."""
        text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", self.operation, flags=re.DOTALL)
        for statement in text.split(";"):
            self.tokens = self.tokenized(statement)
            if self.tokens:
                self.statement()

    def tokenized(self, text):
        tokens, position = [], 0
        text = text.rstrip()
        while position < len(text):
            match = TOKEN.match(text, position)
            if match is None:
                self.refuse()
            tokens.append((match.lastgroup, match.group(match.lastgroup)))
            position = match.end()
        return tokens[::-1]

    def refuse(self):
        raise NotImplementedError(f"the mock cannot evaluate {self.operation!r}")

    def peek(self):
        return self.tokens[-1][1] if self.tokens else None

    def take(self, expected=None):
        if not self.tokens or expected not in (None, self.tokens[-1][1]):
            self.refuse()
        return self.tokens.pop()

    def statement(self):
        if self.peek() == "const":
            self.take()
        dtype = None
        if self.peek() in self.types:
            dtype = np.dtype(self.types[self.take()[1]])
        kind, name = self.take()
        _, operator = self.take()
        if kind != "name" or operator not in ASSIGNMENTS:
            self.refuse()
        if dtype is not None:
            self.dtypes[name] = dtype
        if name not in self.dtypes:
            self.refuse()
        value = self.expression()
        if self.tokens:
            self.refuse()
        if ASSIGNMENTS[operator] is not None:
            value = ASSIGNMENTS[operator](widened(self.values[name]), value)
        self.values[name] = np.asarray(value).astype(self.dtypes[name])

    def expression(self):
        condition = self.binary(0)
        if self.peek() != "?":
            return condition
        self.take()
        first = self.expression()
        self.take(":")
        return np.where(condition, first, self.expression())

    def binary(self, level):
        if level == len(BINARY):
            return self.unary()
        value = self.binary(level + 1)
        while self.peek() in BINARY[level]:
            function = BINARY[level][self.take()[1]]
            value = function(value, self.binary(level + 1))
        return value

    def unary(self):
        token = self.peek()
        if token in ("-", "+", "!", "~"):
            self.take()
            value = self.unary()
            if token == "!":
                return np.logical_not(value)
            return {"-": np.negative, "+": np.positive, "~": np.invert}[token](value)
        return self.member(self.primary())

    def member(self, value):
        while self.peek() == ".":
            self.take()
            _, name = self.take()
            self.take("(")
            self.take(")")
            if name not in ("real", "imag"):
                self.refuse()
            value = getattr(value, name)
        return value

    def primary(self):
        kind, token = self.take()
        if kind == "number":
            return self.number(token)
        if token == "(":
            if self.peek() in self.types and self.tokens[-2:-1] == [("operator", ")")]:
                dtype = self.types[self.take()[1]]
                self.take(")")
                return self.cast(self.unary(), dtype)
            value = self.expression()
            self.take(")")
            return value
        if kind != "name":
            self.refuse()
        if self.peek() == "(":
            arguments = self.arguments()
            if token in self.types and len(arguments) == 1:
                return self.cast(arguments[0], self.types[token])
            if token not in FUNCTIONS:
                self.refuse()
            return FUNCTIONS[token](*arguments)
        if token in ("true", "false"):
            return np.bool_(token == "true")
        if token not in self.values:
            self.refuse()
        return widened(self.values[token])

    def arguments(self):
        values = []
        self.take("(")
        while self.peek() != ")":
            values.append(self.expression())
            if self.peek() != ")":
                self.take(",")
        self.take(")")
        return values

    @staticmethod
    def cast(value, dtype):
        return widened(np.asarray(value).astype(dtype))

    @staticmethod
    def number(token):
        digits = token.rstrip("fFlLuU")
        if "f" in token.lower():
            return np.float32(digits)
        if any(mark in digits for mark in ".eE"):
            # A double in C: float32 times 1.5 is computed in float64.
            return np.float64(digits)
        return int(digits)
