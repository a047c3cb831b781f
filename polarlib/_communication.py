"""communication(): operations and communication of the unitary factor of a sharded matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from polarlib._schedules.products import operations, product_counts
from polarlib.arrays.checks import (
    MOST_ROWS,
    MOST_STEPS,
    choice,
    count,
    nearest,
    number,
    pair,
    shown,
)
from polarlib.arrays.formats import format_of
from polarlib.orthogonalization.options import Options

# Bytes of an element in memory and in a message, by number format.
WIDTHS = {"float64": 8, "float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}
WIDTHS |= {"float8_e4m3": 1, "float8_e5m2": 1}
LINK = ("latency", "bandwidth", "flops")


class Communication(NamedTuple):
    """Work of one device for one matrix and step: means over devices, matrices and steps.

    Attributes
    ----------
    flops : float
        Operations of the matrix products, 2 m k n for an m x k matrix times a k x n one.
    bytes : float
        Bytes that the device sends, in addition to those of AdamW under the same sharding.
    collectives : float
        Number of collective operations on matrices.
    seconds : float or None
        Time by the figures of a link; None without them.
    """

    flops: float
    bytes: float
    collectives: float
    seconds: float | None


class _Case(NamedTuple):
    """Checked arguments of one call; m >= n."""

    m: int
    n: int
    devices: int
    width: int
    width_of_sums: int
    counts: Callable[[float, float], tuple[int, int]]  # products with the matrix, and among n x n
    period: int
    rank: int
    fraction: float

    @property
    def others(self) -> float:
        """Part of an array that one of the devices of a ring sends to gather the array."""
        return (self.devices - 1) / self.devices

    def flops(self, m: float, n: float, devices: int = 1) -> float:
        """Operations for an m x n matrix whose longer side is sharded."""
        n, m = sorted((m, n))
        large, small = self.counts(m, n)
        return operations(large / devices, small, m, n)

    def sums(self) -> int:
        """Number of Gram matrices of the whole matrix: one of two products with the matrix."""
        return self.counts(self.m, self.n)[0] // 2


_Work = tuple[float, float, float]  # operations, bytes, collectives


def _replicated(c: _Case) -> _Work:
    return c.flops(c.m, c.n), 0.0, 0.0


def _owner(c: _Case) -> _Work:
    return c.flops(c.m, c.n) / c.devices, 0.0, 0.0


def _gather(c: _Case) -> _Work:
    return c.flops(c.m, c.n), c.others * c.m * c.n * c.width, 1.0


def _all_to_all(c: _Case, part: float = 1.0) -> _Work:
    sent = 2 * c.others * part * c.m * c.n * c.width / c.devices
    return c.flops(part * c.m, c.n) / c.devices, sent, 2 / c.devices


def _rows(c: _Case) -> _Work:
    sums = c.sums()
    sent = 2 * c.others * sums * c.n**2 * c.width_of_sums
    return c.flops(c.m, c.n, c.devices), sent, float(sums)


def _block(c: _Case) -> _Work:
    rows, longer = divmod(c.m, c.devices)
    flops = longer * c.flops(rows + 1, c.n) + (c.devices - longer) * c.flops(rows, c.n)
    return flops / c.devices, 0.0, 0.0


def _block_periodic(c: _Case) -> _Work:
    whole, blocks = _gather(c), _block(c)
    flops, sent, collectives = (
        (x + (c.period - 1) * y) / c.period for x, y in zip(whole, blocks, strict=True)
    )
    return flops, sent, collectives


def _dion(c: _Case) -> _Work:
    sent = 2 * c.others * (c.m + c.n) * c.rank * c.width
    return 8.0 * c.m * c.n * c.rank, sent, 2.0


def _dion2(c: _Case) -> _Work:
    return _all_to_all(c, c.fraction)


LAYOUTS: dict[str, Callable[[_Case], _Work]] = {
    "replicated": _replicated,
    "owner": _owner,
    "gather": _gather,
    "all_to_all": _all_to_all,
    "rows": _rows,
    "block_periodic": _block_periodic,
    "block": _block,
    "dion": _dion,
    "dion2": _dion2,
}
# The argument that a layout needs, and no other one accepts.
NEEDED = {"block_periodic": "period", "dion": "rank", "dion2": "fraction"}


def communication(
    shape: tuple[int, int],
    *,
    layout: str,
    devices: int,
    steps: int = 5,
    form: str = "gram",
    precision: str = "bfloat16",
    link: Mapping[str, float] | Any = None,
    period: int | None = None,
    rank: int | None = None,
    fraction: float | None = None,
) -> Communication:
    """Return operations and communication of an orthogonalised update, for one layout over devices.

    Parameters
    ----------
    shape : (int, int)
        Shape of the matrix. It is sharded over N = `devices` along its longer side; m is its longer
        and n its shorter side below.
    layout : str
        How a matrix is sharded and its factor is computed; see Notes: "replicated", "owner",
        "gather", "all_to_all", "rows", "block_periodic", "block", "dion" or "dion2".
    devices : int
        Number N of devices; at most m for "block" and "block_periodic".
    steps : int, optional
        Number of steps of the default schedule of `precision`
        (:func:`polarlib.default_schedule`).
    form : {"gram", "plain", "auto"}, optional
        Form of the iteration, as in :func:`orthogonalize`. The Gram form restarts after the steps
        that :func:`polarlib.design.restarts` returns.
    precision : str, optional
        Number format of the matrix, of the iteration and of messages. Sums of Gram matrices are
        sent in float32, or in float64.
    link : mapping or named tuple, optional
        Measured values of a cluster: "latency", the seconds of one collective without data over N
        devices; "bandwidth", the bytes that a device sends per second; "flops", the operations of a
        device per second.
    period : int, optional
        Of "block_periodic": one step in `period` is that of "gather".
    rank : int, optional
        Of "dion": number of columns of Q, at most n.
    fraction : float, optional
        Of "dion2": part of the rows that is orthogonalised, above 0 and at most 1.

    Returns
    -------
    Communication
        A named tuple (flops, bytes, collectives, seconds) for one device, one matrix and one step:
        operations, bytes sent beyond those of AdamW, number of collectives, and time in seconds,
        None without `link`.

    Raises
    ------
    TypeError
        If `link` is neither a mapping nor a named tuple.
    ValueError
        For an unknown layout, form or format; for numbers out of range; for a `period`, `rank` or
        `fraction` that is missing or that the layout does not have; for a `link` with other names
        or with values that are not positive.

    Notes
    -----
    With f = (N - 1) / N, F the operations of :func:`orthogonalize` on one device, w the bytes of an
    element, s those of an element of a sum of Gram matrices, 4, or 8 in float64, and r = `rank`,
    P = `period`, a = `fraction`:

    ================ ============================================== ====================== =========
    layout           how                                            bytes                  flops
    ================ ============================================== ====================== =========
    "replicated"     every device computes the factor               0                      F
    "owner"          each matrix has one device, which updates it   0                      F / N
    "gather"         the matrix is gathered on every device         f m n w                F
    "all_to_all"     of N matrices one to each device, and back     2 f m n w / N          F / N
    "rows"           Gram matrices of parts are summed              2 f n^2 s for each sum see below
    "block_periodic" "gather" in one step of P, else "block"        f m n w / P            mean
    "block"          the factor of each part                        0                      of a part
    "dion"           M Q and M^T P are summed                       2 f (m + n) r w        8 m n r
    "dion2"          "all_to_all" of a part a of the rows           2 f a m n w / N        F(a) / N
    ================ ============================================== ====================== =========

    - Collectives are those of a ring: a gathering sends f times its result, a sum over all devices
      2 f times, an exchange f times a device's part. Where N does not divide a length, numbers
      are means over the devices. On one device nothing is sent.
    - A collective is one call for a matrix: one gathering, one sum, and two exchanges for N
      matrices, thus 2 / N for one. Collectives of single numbers, such as norms, are left out.
    - "rows" has 1 + restarts sums in the Gram form, and one per step in the plain form. Products
      with the matrix are divided among the devices, n x n products are computed on each.
    - "owner" sends what AdamW sends under ZeRO-1, where a device has the optimizer state of whole
      matrices; under other layouts parameters are sharded as with AdamW. "dion" sends its bytes in
      place of the sum of gradients, 2 f m n w, and fewer if r < m n / (m + n). "owner",
      "all_to_all" and "dion2" assume as many matrices of this shape for each device.
    - "dion" has four products: M Q, M^T P, and as in :func:`polarlib.updates.dion` the update P Q^T
      and the error feedback P R^T.
    - Operations of symmetric products are not halved; QR factorisations, norms and other work than
      matrix products are not counted, and `steps` and `form` have no meaning for "dion".
    - `seconds` is collectives * latency + bytes / bandwidth + flops / (flops per second): nothing
      overlaps. AdamW's own communication is not contained.

    References
    ----------
    A. Khaled and others, MuonBP, arXiv 2510.16981 (blocks and periods). K. Ahn, B. Xu and others,
    Dion, arXiv 2504.05295, algorithm 1. Dion2, arXiv 2512.16928. DMuon, arXiv 2606.27153 (owners).
    Ring collectives: R. Thakur, R. Rabenseifner and W. Gropp, Int. J. High Perform. Comput. Appl.
    19 (2005) 49-66, section 4.

    Examples
    --------
    >>> work = communication((16384, 4096), layout="gather", devices=8)
    >>> work.bytes / (2 * 16384 * 4096), work.collectives
    (0.875, 1.0)
    >>> work = communication((16384, 4096), layout="rows", devices=8, form="plain")
    >>> work.bytes / (4 * 16384 * 4096), work.collectives
    (2.1875, 5.0)
    >>> link = {"latency": 20e-6, "bandwidth": 50e9, "flops": 400e12}
    >>> work = communication((16384, 4096), layout="owner", devices=8, link=link)
    >>> work.seconds == work.flops / 400e12
    True
    """
    m, n = sorted(pair("shape", shape), reverse=True)
    layout = choice("layout", layout, LAYOUTS)
    most = m if layout.startswith("block") else MOST_ROWS
    devices = count("devices", devices, 1, most)
    steps = count("steps", steps, 1, MOST_STEPS)
    form_of_elements = format_of(precision)
    precision = form_of_elements.name
    _check_needed(layout, period=period, rank=rank, fraction=fraction)
    options = Options(steps=steps, form=form, precision=precision)

    def counts(m: float, n: float) -> tuple[int, int]:
        how: dict[str, Any] = options.resolved_for((m, n), precision, warns=False)  # type: ignore[arg-type]
        return product_counts(how["schedule"].steps, form=how["form"], restarts=how["restarts"])

    period = 1 if period is None else count("period", period)
    rank = 1 if rank is None else count("rank", rank, most=n)
    fraction = 1.0 if fraction is None else number("fraction", fraction, 0, 1, ends="(]")
    widths = WIDTHS[precision], WIDTHS[form_of_elements.carrier]
    case = _Case(m, n, devices, *widths, counts, period, rank, fraction)
    values = None if link is None else _checked_link(link)
    flops, sent, collectives = LAYOUTS[layout](case)
    if devices == 1:
        sent = collectives = 0.0
    seconds = None
    if values is not None:
        latency, bandwidth, rate = values
        seconds = collectives * latency + sent / bandwidth + flops / rate
    return Communication(float(flops), sent, collectives, seconds)


def _check_needed(layout: str, **given: Any) -> None:
    """Raise ValueError for an argument that is missing, or that is of another layout."""
    for owner, name in NEEDED.items():
        if layout == owner and given[name] is None:
            raise ValueError(f"layout={layout!r} needs {name}; pass {name}=")
        if layout != owner and given[name] is not None:
            raise ValueError(
                f"{name}={shown(given[name])} is for layout={owner!r}, got layout={layout!r}; "
                f"leave {name} out"
            )


def _checked_link(link: Any) -> tuple[float, float, float]:
    """Return latency, bandwidth and operations per second."""
    named = link._asdict() if isinstance(link, tuple) and hasattr(link, "_asdict") else link
    if not isinstance(named, Mapping):
        raise TypeError(
            f"link must be a mapping or named tuple of {', '.join(LINK)}, got {shown(link)}"
        )
    for name in named:
        if name not in LINK:
            raise ValueError(f"link has an unknown name {shown(name)}; {nearest(name, LINK)}")
    for name in LINK:
        if name not in named:
            raise ValueError(f"link must have {', '.join(LINK)}, got {shown(link)}; add {name!r}")
    latency = number("link['latency']", named["latency"], 0)
    bandwidth = number("link['bandwidth']", named["bandwidth"], 0, ends="()")
    rate = number("link['flops']", named["flops"], 0, ends="()")
    return latency, bandwidth, rate
