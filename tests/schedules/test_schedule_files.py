"""Files of schedules, wherever a name goes."""

import json
from pathlib import Path

import numpy as np
import pytest

import polarlib
from polarlib import design, norms, published
from polarlib.testing import with_singular_values

A = with_singular_values(np.geomspace(1.0, 1e-2, 8), seed=3)


@pytest.fixture
def own():
    return design.greedy(1e-2, [5, 3, 5])


@pytest.fixture
def file(own, tmp_path):
    path = tmp_path / "own.json"
    own.to_json(path)
    return path


@pytest.fixture(params=[str, Path], ids=["text", "path"])
def path(file, request):
    return request.param(file)


def test_a_file_is_a_name(own, path):
    assert polarlib.schedule(path) == own
    assert polarlib.schedule(path, 2) == own.truncate(2)
    with pytest.raises(ValueError, match=r"at most 3 .* got 4; .*repeat="):
        polarlib.schedule(path, 4)


def test_a_file_is_read_as_it_is(tmp_path):
    """Seven steps of a set that repeats are seven steps, where its name alone gives five."""
    seven = polarlib.schedule("jordan", 7)
    seven.to_json(tmp_path / "seven.json")
    assert polarlib.schedule(tmp_path / "seven.json") == seven
    assert len(polarlib.schedule(tmp_path / "seven.json", 9)) == 9


def test_wherever_a_name_goes(own, path):
    q = polarlib.orthogonalize(A, schedule=own)
    assert np.array_equal(polarlib.orthogonalize(A, schedule=path), q)
    assert np.array_equal(polarlib.orthogonalize_all([A, A], schedule=path)[1], q)
    assert np.array_equal(
        polarlib.orthogonalize(A, schedule=path, steps=2),
        polarlib.orthogonalize(A, schedule=own.truncate(2)),
    )
    t, u = polarlib.measure(A, path), polarlib.measure(A, own)
    assert (t.method, t.n_steps) == (own.name, 3)
    assert np.array_equal(t.singular_values, u.singular_values)
    r = polarlib.polar(A, method=path)
    assert np.array_equal(r.unitary, polarlib.polar(A, method=own).unitary)
    assert own.name in r.method
    assert np.array_equal(norms.spectral(polar=path).lmo(A), norms.spectral(polar=own).lmo(A))
    tangent = polarlib.orthogonalize_jvp(A, A, schedule=path)
    assert np.array_equal(tangent, polarlib.orthogonalize_jvp(A, A, schedule=own))


def test_a_file_that_changes_is_read_again(own, file):
    before = polarlib.orthogonalize(A, schedule=file)
    other = polarlib.schedule("cubic5")
    other.to_json(file)
    assert polarlib.schedule(file) == other
    assert np.array_equal(
        polarlib.orthogonalize(A, schedule=file), polarlib.orthogonalize(A, schedule=other)
    )
    own.to_json(file)
    assert np.array_equal(polarlib.orthogonalize(A, schedule=file), before)


@pytest.mark.parametrize("call", ["schedule", "orthogonalize", "measure", "polar", "spectral"])
def test_what_is_no_schedule(call, tmp_path, file):
    calls = {
        "schedule": polarlib.schedule,
        "orthogonalize": lambda f: polarlib.orthogonalize(A, schedule=f),
        "measure": lambda f: polarlib.measure(A, f),
        "polar": lambda f: polarlib.polar(A, method=f),
        "spectral": lambda f: norms.spectral(polar=f),
    }
    run = calls[call]
    (tmp_path / "text.json").write_text("[1, 2", encoding="utf-8")
    document = json.loads(file.read_text(encoding="utf-8"))
    document["steps"][0] = {"decimal": [1.0, 9.0], "hex": ["0x1p+0", "0x1.2p+3"]}
    document["input_safety"] = 1.0
    document["lower"] = 0.5
    (tmp_path / "bad.json").write_text(json.dumps(document), encoding="utf-8")
    for name, said in [
        ("absent.json", "No such file"),
        ("text.json", "is not JSON"),
        ("bad.json", r"leaves \(0, 2\)|not positive"),
        ("", "folder"),
    ]:
        with pytest.raises(ValueError, match=said) as error:
            run(tmp_path / name if not name else str(tmp_path / name))
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_torch_compile(own, path):
    torch = pytest.importorskip("torch")
    a = torch.tensor(A)

    @torch.compile(fullgraph=True, backend="eager")
    def f(x):
        return polarlib.orthogonalize(x, schedule=path)

    assert torch.equal(f(a), polarlib.orthogonalize(a, schedule=own))


def test_jit(own, path):
    jax = pytest.importorskip("jax")
    a = jax.numpy.asarray(A, dtype="float32")
    f = jax.jit(lambda x: polarlib.orthogonalize(x, schedule=path))
    found, wanted = f(a), polarlib.orthogonalize(a, schedule=own)
    assert np.allclose(found, wanted, atol=1e-5)


def test_sets_for_other_targets(monkeypatch):
    """As data may hold them: what they are for goes with them, and `polar` has no such methods."""
    root, cap = design.inverse_root(3, 0.1, [4, 4]), design.clip(4.0, [5, 5])
    entries = {
        name: {
            "steps": s.steps,
            "lower": s.lower,
            "upper": s.upper,
            "normalisation": s.normalisation,
            "source": s.source,
            "scaling": "none",
            "stride": s.stride,
            "target": s.target,
        }
        for name, s in (("a root of a test", root), ("a cap of a test", cap))
    }
    data = published._data
    known = {**data("schedules"), **entries}
    monkeypatch.setattr(published, "_data", lambda n: known if n == "schedules" else data(n))
    for name, s in (("a root of a test", root), ("a cap of a test", cap)):
        found = polarlib.schedule(name)
        assert (found.steps, found.stride, found.target) == (s.steps, s.stride, s.target)
        assert name in polarlib.schedules()
        assert name not in polarlib.methods()
    with pytest.raises(ValueError, match="with stride 3; pass it to polarlib"):
        polarlib.orthogonalize(A, schedule="a root of a test")
    with pytest.raises(ValueError, match="not the unitary factor; apply it with orthogonalize"):
        polarlib.polar(A, method="a cap of a test")
    capped = polarlib.orthogonalize(A, schedule="a cap of a test")
    assert np.array_equal(capped, polarlib.orthogonalize(A, schedule=cap))
