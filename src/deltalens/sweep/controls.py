"""Matched controls of an edit of weights: changes as long as its own that know less of it (docs/behaviour.md §6).

    random U      own right vectors and σ, Haar-random output side: the same ‖CΣ^½‖ whatever the inputs
    random V      own left vectors and σ, right vectors drawn from Cov(x) of the inputs
    sibling       the same edit of a sibling pair
    layer +s      the change of the same kind s layers further, round the layers that the edit changes
    Haar U, V     the same σ, nothing else; shown, never deciding: far shorter on real inputs
    Gaussian      the same ‖C‖_F, nothing else; likewise

C is what the edit adds to one tensor. The second to the fourth are rescaled tensor by tensor to the edit's ‖CΣ^½‖_F, or
to its ‖C‖_F where Σ is not known. Of a change that is no matrix (gains, biases, stacks) the random ones permute the
entries, which keeps its length. Left where they start: by `random V` whatever has no Σ, by the sibling and the layers
whatever has no counterpart.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from zlib import crc32

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.pair import Row
from deltalens.edit.form import Form, triples
from deltalens.edit.plan import Plan
from deltalens.edit.swap import swapped
from deltalens.edit.tensors import changes
from deltalens.sweep.arms import SEEDS, Arm
from deltalens.sweep.bench import Point, placed
from deltalens.sweep.inputs import Input, functional_norm

Tensors = Iterator[tuple[Row, Form]]

_SHIFTS = 5  # other layers at most: a control of each layer of a deep model would cost more than the curve
_FLAT = 1e-6
"""Share of the largest singular value of Cov(x)^½ below which it is rounding: moments hold 1e-12 of themselves."""
_TABLES = ("embed", "pos_embed")  # their rows write: the output side is the columns


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A change that stands in for that of an edit.

    Attributes:
        kind: As in this module's table.
        seed: Of a drawn one.
        decides: Whether a claim rests on it; else it is only shown.
        made: What the tensors become, worked out again on every call, one at a time.
        functional_norm: ‖CΣ^½‖_F over all matrices with Σ; None where there are none.
        norm: ‖C‖_F over all tensors.
    """

    kind: str
    seed: int | None
    decides: bool
    made: Callable[[], Tensors]
    functional_norm: float | None
    norm: float

    @property
    def name(self) -> str:
        """As it stands in the name of an arm."""
        return self.kind if self.seed is None else f"{self.kind} {self.seed}"


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What an edit adds to one tensor.

    Attributes:
        row: The tensor.
        start: What it is added to.
        form: C.
        read: Moments of the input, where they are known.
        size: ‖CΣ^½‖_F, ‖C‖_F without Σ.
    """

    row: Row
    start: Form
    form: Form
    read: Input | None
    size: float

    def matched(self, other: Form) -> Form | None:
        """Another change at the size of this one; None where it has none."""
        size = _size(other, self.read)
        return self.size / size * other if size else None


Make = Callable[[Change], Form | None]
Draw = Callable[[Change, np.random.Generator], Form | None]


def controls(
    opened: Plan, side: str, inputs: Mapping[str, Input] | None = None, sibling: Plan | None = None
) -> list[Control]:
    """Every control of an edit that changes anything.

    Reads the edited tensors, and draws every control once to measure it, one tensor at a time. `random V` keeps U·σ of
    every matrix with Σ and a root of every Cov(x) for all its seeds: at most twice the size of those matrices in
    float32, and as much again as the Σ.

    Args:
        opened: The edit.
        side: Where it starts, `base` or `tuned`: what its change is taken from, and what controls are added to.
        inputs: Σ by canonical name, from `inputs.second_moments`; without it all lengths are ‖C‖_F.
        sibling: The same operations on (base, sibling).
    """
    found = changes_of(opened, side, inputs)
    own = _lengths((c, c.form) for c in found)
    u_sigma = cache(lambda c: _u_sigma(c.form))
    roots: dict[int, Float64[np.ndarray, "n r"]] = {}  # by identity: q, k and v read one input

    def random_v(c: Change, rng: np.random.Generator) -> Form | None:
        if c.read is None or len(c.row.shape) != 2:
            return None
        if id(c.read) not in roots:
            roots[id(c.read)] = _root(c.read.covariance)
        root, left = roots[id(c.read)], u_sigma(c)
        k = min(left.shape[1], root.shape[1])
        right = np.linalg.qr(root @ rng.standard_normal((root.shape[1], k)))[0]
        return c.matched(Form.product(left[:, :k], right.T))

    def drawn(kind: str, draw: Draw, seeds: int, decides: bool = True) -> list[Control]:
        known = own if draw is _random_u else None  # as long as the edit itself, by construction

        def one(seed: int) -> Control:
            return _control(found, kind, seed, decides, lambda c: draw(c, _rng(kind, seed, c.row)), known)

        return [one(seed) for seed in range(seeds)]

    def taken(kind: str, others: Mapping[str, Form]) -> Control:
        def make(c: Change) -> Form | None:
            other = others.get(c.row.name.name)
            return c.matched(other) if other is not None and other.shape == c.form.shape else None

        return _control(found, kind, None, True, make)

    made = drawn("random U", _random_u, SEEDS) + drawn("random V", random_v, SEEDS)
    if sibling is not None:
        made.append(taken("sibling", {c.row.name.name: c.form for c in changes_of(sibling, side)}))
    made += [taken(f"layer +{s}", others) for s, others in _shifted(found).items()]
    made += drawn("Haar U, V", _haar_both, 1, decides=False) + drawn("Gaussian", _gaussian, 1, decides=False)
    return [control for control in made if control.norm]


def changes_of(opened: Plan, side: str, inputs: Mapping[str, Input] | None = None) -> list[Change]:
    """What an edit adds to every tensor that it changes; those that it changes by nothing are left out.

    Args:
        opened: The edit.
        side: `base` or `tuned`, what the change is taken from.
        inputs: Σ by canonical name.
    """
    found = []
    for row, made in changes(opened, side):
        start = Form.of(opened.stored(row, side))
        change, read = made - start, (inputs or {}).get(row.name.name)
        if change.norm_sq():
            found.append(Change(row, start, change, read, _size(change, read)))
    return found


def points(of: Point, made: Sequence[Control], start: Plan | None) -> list[Point]:
    """Controls as points beside the edit that they control.

    Args:
        of: The edit.
        made: Its controls.
        start: The plan that gives the base, where the edit starts there; None where it starts at the tuned model.
    """
    found = []
    for control in made:
        arm = Arm(
            name=f"{of.arm.name}: {control.name}",
            role="control",
            edit={**of.arm.edit, "control": control.kind, "seed": control.seed, "decides": control.decides},
            control_of=of.arm.name,
            norm_delta=control.norm,
            functional_norm=control.functional_norm,
        )
        if start is None:
            found.append(Point(arm, of.strength, lambda model, made=control.made: swapped(model, made())))
        else:
            found.append(placed(arm, of.strength, start, control.made))
    return found


def _control(
    of: Sequence[Change],
    kind: str,
    seed: int | None,
    decides: bool,
    make: Make,
    lengths: tuple[float | None, float] | None = None,
) -> Control:
    def pairs() -> Iterator[tuple[Change, Form]]:
        return ((c, form) for c in of if (form := make(c)) is not None)

    def made() -> Tensors:
        return ((c.row, c.start + form) for c, form in pairs())

    return Control(kind, seed, decides, made, *(lengths or _lengths(pairs())))


def _lengths(pairs: Iterable[tuple[Change, Form]]) -> tuple[float | None, float]:
    """‖CΣ^½‖_F over what has Σ, and ‖C‖_F over all."""
    squares, functional = 0.0, []
    for c, form in pairs:
        squares += form.norm_sq()
        if c.read is not None:
            functional.append(functional_norm(form, c.read.sigma) ** 2)
    return float(np.sqrt(sum(functional))) if functional else None, float(np.sqrt(squares))


def _size(form: Form, read: Input | None) -> float:
    return float(np.sqrt(form.norm_sq())) if read is None else functional_norm(form, read.sigma)


def _random_u(c: Change, rng: np.random.Generator) -> Form:
    """C' with C'ᵀC' = CᵀC and a Haar-random output side; with C'C'ᵀ = CCᵀ for a table, whose rows write."""
    if len(c.row.shape) != 2:
        return _permuted(c.form, rng)
    table = c.row.name.kind in _TABLES
    core = _core(c.form, table)
    side = _haar(c.form.shape[table], len(core), rng)
    return Form.product(core.T, side.T) if table else Form.product(side, core)


def _haar_both(c: Change, rng: np.random.Generator) -> Form:
    """The same singular values between Haar-random sides."""
    if len(c.row.shape) != 2:
        return _permuted(c.form, rng)
    core = _core(c.form)
    square = np.asarray(np.linalg.qr(core.T, mode="r")).T
    left, right = (_haar(n, k, rng) for n, k in zip(c.form.shape, square.shape, strict=True))
    return Form.product(left @ square, right.T)


def _gaussian(c: Change, rng: np.random.Generator) -> Form:
    """Independent entries, of the same ‖C‖_F."""
    if len(c.row.shape) != 2:
        return _permuted(c.form, rng)
    drawn = rng.standard_normal(c.form.shape)
    return _array(drawn * (np.sqrt(c.form.norm_sq()) / np.linalg.norm(drawn)))


def _permuted(form: Form, rng: np.random.Generator) -> Form:
    """The same entries elsewhere."""
    entries = np.concatenate([*form.blocks()])
    return _array(rng.permutation(entries.ravel()).reshape(entries.shape))


def _array(entries: Float64[np.ndarray, "m n"]) -> Form:
    """A matrix as it stands, as factors of which the smaller one is the identity."""
    m, n = entries.shape
    return Form.product(entries, np.eye(n)) if m >= n else Form.product(np.eye(m), entries)


def _core(form: Form, turned: bool = False) -> Float64[np.ndarray, "k n"]:
    """K with KᵀK = CᵀC and no more rows than C or its factors; of Cᵀ if turned. No SVD is needed: C = QR will do."""
    left, right = (np.concatenate([*form.blocks()]), None) if form.terms else (form.left, form.right)
    if turned:
        left, right = (left.T, None) if right is None else (right.T, left.T)
    core = np.asarray(np.linalg.qr(left, mode="r")) if len(left) > left.shape[1] else left
    return core if right is None else core @ right


def _haar(n: int, k: int, rng: np.random.Generator) -> Float64[np.ndarray, "n k"]:
    """k orthonormal columns, Haar-distributed: the signs that LAPACK chooses are taken out (Mezzadri 2007)."""
    q, r = np.linalg.qr(rng.standard_normal((n, k)))
    return q * np.sign(np.diag(r))


def _u_sigma(form: Form) -> Float64[np.ndarray, "m k"]:
    found = triples(form, min(form.shape))
    return found.left * found.sigma[: found.left.shape[1]]


def _root(covariance: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "n r"]:
    """F with FFᵀ = Cov(x), a column for every direction in which there is input."""
    values, vectors = np.linalg.eigh(covariance)
    root = np.sqrt(np.clip(values, 0.0, None))
    there = root > _FLAT * root[-1]
    return vectors[:, there] * root[there]


def _shifted(found: Sequence[Change]) -> dict[int, dict[str, Form]]:
    """For some numbers of layers: of every tensor the change of the one so many layers further, among those changed."""
    groups: dict[tuple[str, tuple[int, ...]], list[Change]] = {}
    for c in found:
        if c.row.name.layer is not None:
            kind = c.row.name.name.replace(f".{c.row.name.layer}.", ".", 1)
            groups.setdefault((kind, c.row.shape), []).append(c)
    last = max(map(len, groups.values()), default=1) - 1
    shifts = np.unique(np.linspace(1, last, min(last, _SHIFTS)).round().astype(int)).tolist()
    return {
        s: {
            c.row.name.name: group[(i + s) % len(group)].form
            for group in groups.values()
            if s % len(group)  # or it would be its own control
            for i, c in enumerate(group)
        }
        for s in shifts
    }


def _rng(kind: str, seed: int, row: Row) -> np.random.Generator:
    """The source of one tensor's draw, whatever else is drawn."""
    return np.random.default_rng([seed, crc32(f"{kind}/{row.name.name}".encode())])
