"""Saved keys and values: they come back as they were, or not at all."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors import safe_open

from selfextend_rag.cache import SelfExtendCache, files, persist
from selfextend_rag.cache.persist import snapshot
from selfextend_rag.engine import CachedPrefix, Engine, GenerationSettings
from selfextend_rag.errors import CacheMismatchError, CorruptReadingError, ReadingFileError
from selfextend_rag.positions import SelfExtend
from tests import zoo
from tests.tiny import tiny_llama

MINE = {"weights": "abc"}
PROMPT = zoo.tokens(90)[0].tolist()
GREEDY = GenerationSettings(max_new_tokens=8, stop_token_ids=())


def saved(path, engine, length=70, extension=None, fingerprint=MINE):
    prefix = engine.prefill(PROMPT[:length], settings=extension)
    persist.save(
        path, snapshot(prefix.cache), prefix.tokens, extension, fingerprint=fingerprint,
        capacity=100, attachment=b"and more",
    )  # fmt: skip
    return prefix


def loaded(path, engine, fingerprint=MINE):
    def blank(extension):
        return engine.prefill((5,), settings=extension).cache

    return persist.load(path, blank, fingerprint=fingerprint)


@pytest.mark.parametrize("extension", [None, SelfExtend(4, 16)], ids=str)
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", torch.float32),
        ("llama", torch.bfloat16),
        ("llama", torch.float16),
        ("qwen2", torch.float32),
        ("qwen3", torch.bfloat16),
        ("gemma3_text", torch.float32),
        ("gemma3_text", torch.bfloat16),
        ("gemma3n_text", torch.float32),
        ("lfm2", torch.float32),
        ("falcon_h1", torch.float32),
        ("deepseek_v3", torch.float32),
    ],
)
@pytest.mark.parametrize("length", [10, 70])
def test_what_was_saved_comes_back_bit_for_bit_and_goes_on_the_same(
    tmp_path, family, dtype, extension, length
):
    """Sliding windows half full and full, convolution and recurrent states, latent keys."""
    engine = Engine(zoo.build(family).to(dtype))
    prefix = saved(tmp_path / "x", engine, length, extension)
    back = loaded(tmp_path / "x", engine)
    assert back.tokens == prefix.tokens
    assert back.settings == extension
    assert back.attachment == b"and more"
    before, after = snapshot(prefix.cache).tensors, snapshot(back.cache).tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    expected = list(engine.generate(PROMPT, GREEDY, prefix=prefix))
    again = CachedPrefix(back.tokens, back.settings, back.cache)
    for _ in range(2):
        assert list(engine.generate(PROMPT, GREEDY, prefix=again)) == expected


def test_the_file_is_plain_safetensors_without_the_grouped_keys(tmp_path):
    engine = Engine(tiny_llama())
    prefix = saved(tmp_path / "x", engine, extension=SelfExtend(4, 16))
    list(engine.generate(PROMPT, GREEDY, prefix=prefix))  # makes grouped keys
    assert prefix.cache.layers[0].grouped_keys.nbytes
    persist.save(tmp_path / "x", snapshot(prefix.cache), prefix.tokens, None, fingerprint=MINE)
    with safe_open(tmp_path / "x", "pt") as file:
        assert set(file.keys()) == {"tokens"} | {
            f"layers.{i}.{name}" for i in (0, 1) for name in ("keys", "values")
        }
        assert torch.equal(file.get_tensor("layers.1.keys"), prefix.cache.layers[1].keys)


def test_a_loaded_cache_has_the_room_it_was_saved_with(tmp_path):
    engine = Engine(tiny_llama())
    saved(tmp_path / "x", engine)
    back = loaded(tmp_path / "x", engine)
    buffer = back.cache.layers[0].keys.untyped_storage().data_ptr()
    prefix = CachedPrefix(back.tokens, None, back.cache)
    list(engine.generate(PROMPT, GREEDY, prefix=prefix))
    assert prefix.cache.layers[0].keys.untyped_storage().data_ptr() == buffer


def test_another_fingerprint_is_refused_and_the_parts_that_differ_are_named(tmp_path):
    engine = Engine(tiny_llama())
    mine = {"weights": "a1", "tokenizer": "t"}
    saved(tmp_path / "x", engine, fingerprint=mine)
    with pytest.raises(CacheMismatchError) as error:
        loaded(tmp_path / "x", engine, {"weights": "b2", "tokenizer": "t"})
    assert "weights a1 there, b2 here" in str(error.value)
    assert "tokenizer" not in str(error.value)
    assert str(tmp_path / "x") in str(error.value)
    assert "read the documents again" in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_hidden_layers": 3}, "layers"),
        ({"num_key_value_heads": 4}, "this model makes F64"),
        ({"head_dim": 16}, "this model makes F64"),
    ],
)
def test_keys_of_another_shape_are_refused_whatever_the_fingerprint_says(tmp_path, options, says):
    saved(tmp_path / "x", Engine(tiny_llama()))
    with pytest.raises(CacheMismatchError, match=says):
        loaded(tmp_path / "x", Engine(tiny_llama(**options)))


def test_keys_of_another_precision_are_refused(tmp_path):
    saved(tmp_path / "x", Engine(tiny_llama()))
    with pytest.raises(CacheMismatchError, match=r"F64 .* in the file, and this model makes F32"):
        loaded(tmp_path / "x", Engine(tiny_llama(dtype=torch.float32)))


def test_a_layer_of_a_kind_that_is_not_understood_is_refused_by_name():
    class QuantisedLayer(SelfExtendCache().layer_class_to_replicate):
        pass

    cache = SelfExtendCache(tiny_llama().config)
    cache.layers[1] = QuantisedLayer()
    with pytest.raises(CacheMismatchError, match="layer 1 keeps its keys in a QuantisedLayer"):
        snapshot(cache)


def damages(content, other, randomness):
    """Endless damaged versions of a file, none equal to it."""
    ways = [_flip, _cut, _lengthen, _swap, _overwrite, _edit_header, _new_length, _replace]
    while True:
        damaged = randomness.choice(ways)(bytearray(content), other, randomness)
        if damaged != content:
            yield bytes(damaged)


def _flip(data, other, randomness):
    for _ in range(randomness.choice([1, 1, 5])):
        data[randomness.randrange(len(data))] ^= 1 << randomness.randrange(8)
    return data


def _cut(data, other, randomness):
    return data[: randomness.randrange(len(data))]


def _lengthen(data, other, randomness):
    return data + randomness.randbytes(randomness.randrange(1, 50))


def _swap(data, other, randomness):
    size = randomness.choice([1, 8, 64])
    a, b = (randomness.randrange(len(data) - size) for _ in range(2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return data


def _overwrite(data, other, randomness):
    start = randomness.randrange(len(data) - 16)
    data[start : start + 16] = randomness.choice([bytes(16), randomness.randbytes(16)])
    return data


def _edit_header(data, other, randomness):
    """A header that is valid JSON, and says something else."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    name = randomness.choice(list(header))
    values = header[name]
    key = randomness.choice(list(values))
    if isinstance(values[key], str):
        spot = randomness.randrange(len(values[key]))
        values[key] = values[key][:spot] + randomness.choice("0aZ") + values[key][spot + 1 :]
    else:
        values[key] = [x + randomness.choice([-8, 1, 8, 1 << 40]) for x in values[key]]
    text = json.dumps(header, separators=(",", ":")).encode()
    return bytearray(struct.pack("<Q", len(text)) + text) + data[8 + length :]


def _new_length(data, other, randomness):
    data[:8] = struct.pack("<Q", randomness.choice([0, 1, 100, 1 << 20, 1 << 62, (1 << 64) - 1]))
    return data


def _replace(data, other, randomness):
    """The header of one file and the data of another; garbage; nothing."""
    length = 8 + struct.unpack("<Q", data[:8])[0]
    return randomness.choice(
        [data[:length] + other[-(len(data) - length) :], randomness.randbytes(len(data)), b""]
    )


def test_two_hundred_random_corruptions_are_two_hundred_refusals(tmp_path):
    engine = Engine(tiny_llama(dtype=torch.float32))
    saved(tmp_path / "x", engine)
    blank = engine.prefill((5,)).cache
    other = SelfExtendCache(engine.model.config)
    persist.save(
        tmp_path / "other",
        snapshot(engine.prefill(PROMPT[::-1][:70], settings=None).cache),
        PROMPT[::-1][:70],
        None,
        fingerprint=MINE,
    )
    content, other = ((tmp_path / name).read_bytes() for name in ("x", "other"))
    broken = damages(content, other, random.Random(0))
    refusals = []
    for _ in range(200):
        (tmp_path / "x").write_bytes(next(broken))
        with pytest.raises((CorruptReadingError, CacheMismatchError)) as error:
            persist.load(tmp_path / "x", lambda _: blank, fingerprint=MINE)
        refusals.append(error.value)
        assert str(tmp_path / "x") in str(error.value)
    assert sum(isinstance(error, CorruptReadingError) for error in refusals) == 200
    assert len({str(error).split(":")[1][:20] for error in refusals}) >= 5  # different ways
    (tmp_path / "x").write_bytes(content)
    persist.load(tmp_path / "x", lambda _: blank, fingerprint=MINE)


def test_a_pickle_is_not_read(tmp_path):
    torch.save({"keys": torch.zeros(3)}, tmp_path / "x")
    with pytest.raises(CorruptReadingError, match="no saved reading"):
        loaded(tmp_path / "x", Engine(tiny_llama()))


@pytest.mark.parametrize("version", ["1", "7"])
def test_a_file_of_an_earlier_or_later_format_says_so(tmp_path, version):
    engine = Engine(tiny_llama())
    saved(tmp_path / "x", engine)
    content = (tmp_path / "x").read_bytes()
    changed = content.replace(b'"version":"2"', f'"version":"{version}"'.encode())
    (tmp_path / "x").write_bytes(changed)
    says = f"format version '{version}', and this release reads 2; read the documents again"
    with pytest.raises(CorruptReadingError, match=says):
        loaded(tmp_path / "x", engine)


def test_missing_files_and_folders_are_named(tmp_path):
    engine = Engine(tiny_llama())
    with pytest.raises(ReadingFileError, match=r"can't read .*missing: No such file"):
        loaded(tmp_path / "missing", engine)
    with pytest.raises(ReadingFileError, match=r"can't read .*: Is a directory"):
        loaded(tmp_path, engine)
    with pytest.raises(ReadingFileError, match=r"can't write .*name a file in a folder"):
        saved(tmp_path / "no" / "folder", engine)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ReadingFileError, match=r"can't write .*: Is a directory"):
        saved(tmp_path / "folder", engine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    engine = Engine(tiny_llama())
    saved(tmp_path / "x", engine)
    before = (tmp_path / "x").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ReadingFileError, match="No space left on device"):
        saved(tmp_path / "x", engine, length=30)
    assert (tmp_path / "x").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_killed_writers_left_is_removed_once_it_is_old(tmp_path):
    engine = Engine(tiny_llama())
    old, new, other = (tmp_path / f".{name}.tmp" for name in ("x.1-a", "x.2-b", "y.3-c"))
    for path in (old, new, other):
        path.write_bytes(b"half a file")
    past = time.time() - 2 * 3600
    os.utime(old, (past, past))
    os.utime(other, (past, past))
    saved(tmp_path / "x", engine)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.2-b.tmp", ".y.3-c.tmp", "x"]


_WRITER = """
    import sys
    from pathlib import Path
    import torch
    from selfextend_rag.cache import SelfExtendCache, persist
    from selfextend_rag.cache.persist import Snapshot

    path, value = Path(sys.argv[1]), float(sys.argv[2])
    kinds = ["GrowingLayer"] * 2
    tensors = {
        f"layers.{i}.{name}": torch.full((1, 2, 20000, 16), value)
        for i in (0, 1) for name in ("keys", "values")
    }
    print("ready", flush=True)
    while True:
        persist.save(
            path, Snapshot(kinds, tensors), [int(value)] * 20000, None, fingerprint={"w": "1"}
        )
"""


def start_writer(path, value):
    source = textwrap.dedent(_WRITER)
    process = subprocess.Popen(
        [sys.executable, "-c", source, str(path), str(value)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def one_value(path):
    """The one value that all of a file's tokens, keys and values have."""
    model = tiny_llama(dtype=torch.float32, hidden_size=64, head_dim=16)
    back = loaded(path, Engine(model), {"w": "1"})
    tensors = snapshot(back.cache).tensors.values()
    values = set(back.tokens) | {float(x) for t in tensors for x in (t.min(), t.max())}
    assert len(values) == 1
    return values.pop()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new(tmp_path):
    path = tmp_path / "x"
    randomness = random.Random(1)
    interrupted = 0
    for value in range(1, 7):
        process = start_writer(path, value)
        try:
            time.sleep(randomness.uniform(0, 0.15))
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        interrupted += any(tmp_path.glob(".x.*.tmp"))
        if path.exists():
            assert 1 <= one_value(path) <= value
    assert path.exists()
    assert interrupted, "no writer was killed while it wrote"


@pytest.mark.slow
def test_two_processes_that_save_to_one_path_never_mix(tmp_path):
    path = tmp_path / "x"
    writers = [start_writer(path, value) for value in (3, 4)]
    try:
        while not path.exists():
            time.sleep(0.01)
        seen = {one_value(path) for _ in range(25)}
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()
    assert seen <= {3, 4}
    assert seen
