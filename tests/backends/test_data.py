"""Splits, and the user's files: every format, and the one line that bad data get."""

import json

import numpy as np
import pytest
from PIL import Image

from backends.data import Split, load_data, trimmed
from backends.datafiles import divide
from backends.models import InputSpec, LoadedModel
from backends.sources import open_source
from knowledge.layers import ModelInfo
from knowledge.values import InputError


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "good": 3, "bad": 4, "film": 5, "a": 6}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def images(classes=3):
    info = ModelInfo("m", "cnn", "image-classification", classes=classes, image_size=(1, 4, 4))
    return LoadedModel(None, info, (InputSpec("pixels", "float32", ("batch", 1, 4, 4)),), "tensor", "a.b:c")


def texts(tokenizer, task="text-classification", classes=2):
    info = ModelInfo("m", "transformer", task, classes=classes, vocab_size=7, max_length=8)
    inputs = tuple(InputSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
    return LoadedModel(None, info, inputs, "logits", "folder", tokenizer)


def line(model, path, part="eval"):
    with pytest.raises(InputError) as caught:
        load_data(model, {part: str(path)}, 0)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith((f"{part}-data: ", "data: "))
    return text


def arrays(path, count=40, **changes):
    rng = np.random.default_rng(0)
    found = {"pixels": rng.random((count, 1, 4, 4)).astype(np.float32), "labels": np.arange(count) % 3} | changes
    np.savez(path, **{k: v for k, v in found.items() if v is not None})
    return path


def rows(split):
    """The samples as a set, to tell whether splits are disjoint."""
    array = next(iter(split.inputs.values()))
    return {row.tobytes() for row in array}


# -- splits ----------------------------------------------------------------------------------------


def test_batches_cover_a_split_once_and_in_order():
    split = Split({"x": np.arange(10.0).reshape(5, 2)}, np.arange(5))
    found = list(split.batches(2))
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in found]), split.inputs["x"])
    assert [b["labels"].tolist() for b in found] == [[0, 1], [2, 3], [4]]
    assert len(split.head(3)) == 3
    assert len(split.head(0)) == 0
    assert list(split.head(0).batches(4)) == []


def test_shared_padding_is_cut_off_but_never_a_language_models():
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    batch = trimmed({"input_ids": mask * 5, "attention_mask": mask})
    assert batch["input_ids"].shape == (3, 3)
    split = Split({"input_ids": mask * 5, "attention_mask": mask})
    assert [b["attention_mask"].shape[1] for b in split.batches(2)] == [2, 3]
    split = Split({"input_ids": mask * 5, "attention_mask": mask}, mask)
    assert [b["attention_mask"].shape[1] for b in split.batches(2)] == [4, 4]


def test_fingerprints_tell_contents_order_and_labels():
    x = np.arange(6.0).reshape(3, 2)
    base = Split({"x": x}, np.arange(3)).fingerprint()
    assert Split({"x": x.copy()}, np.arange(3)).fingerprint() == base
    changed = x.copy()
    changed[0, 0] += 1e-9
    others = [Split({"x": changed}, np.arange(3)), Split({"x": x}, np.arange(3)[::-1]), Split({"x": x})]
    others += [Split({"y": x}, np.arange(3)), Split({"x": x[::-1]}, np.arange(3))]
    assert len({base, *(o.fingerprint() for o in others)}) == 6


# -- which file becomes which split ----------------------------------------------------------------


def test_one_eval_file_is_split_by_seed(tmp_path):
    path = arrays(tmp_path / "eval.npz", 100)
    data = load_data(images(), {"eval": str(path)}, 0)
    assert [len(s) for s in (data.train, data.calibration, data.search, data.verification)] == [0, 10, 30, 60]
    parts = [rows(s) for s in (data.calibration, data.search, data.verification)]
    assert len(set.union(*parts)) == 100
    again, other = (load_data(images(), {"eval": str(path)}, seed) for seed in (0, 1))
    assert again.search.fingerprint() == data.search.fingerprint()
    assert other.search.fingerprint() != data.search.fingerprint()


def test_train_alone_gives_every_part(tmp_path):
    data = load_data(images(), {"train": str(arrays(tmp_path / "train.npz", 100))}, 0)
    parts = (data.train, data.calibration, data.search, data.verification)
    assert [len(s) for s in parts] == [70, 10, 10, 10]
    assert len(set.union(*(rows(s) for s in parts))) == 100


def test_calibration_comes_from_training_data_never_from_eval(tmp_path):
    train, judged = arrays(tmp_path / "train.npz", 50), arrays(tmp_path / "eval.npz", 30, pixels=np.ones((30, 1, 4, 4)))
    data = load_data(images(), {"train": str(train), "eval": str(judged)}, 0)
    assert (len(data.train), len(data.calibration), len(data.search), len(data.verification)) == (40, 10, 12, 18)
    assert not rows(data.calibration) & rows(data.verification)
    assert not rows(data.calibration) & rows(data.train)


def test_a_zoo_models_data_serve_others():
    info = ModelInfo("file", "cnn", "image-classification")
    model = LoadedModel(None, info, (InputSpec("pixels", "float32", ("batch", 1, 8, 8)),), "tensor", "model.onnx")
    data = load_data(model, {"train": "zoo:digits-cnn", "eval": "zoo:digits-cnn"}, 0)
    assert len(data.search) + len(data.verification) == 697
    assert not rows(data.train) & rows(data.verification)


def test_what_cannot_be_split(tmp_path):
    with pytest.raises(InputError, match="comes without data of its own; give --eval-data"):
        load_data(images(), {}, 0)
    path = str(arrays(tmp_path / "few.npz", 2))
    assert "too few to split" in line(images(), path)
    with pytest.raises(InputError, match="calibration alone cannot judge"):
        load_data(images(), {"calibration": path}, 0)
    with pytest.raises(InputError, match="one file serves two parts"):
        load_data(images(), {"train": path, "eval": path}, 0)
    with pytest.raises(InputError, match="test: unknown part"):
        load_data(images(), {"test": path}, 0)


def test_pairs_stay_together():
    split = Split({"x": np.arange(40).reshape(40, 1)}, np.repeat(np.arange(20, dtype=np.float32), 2))
    for part in divide(split, [0.5, 0.5], np.random.default_rng(0), "pairs"):
        np.testing.assert_array_equal(part.labels[::2], part.labels[1::2])
        np.testing.assert_array_equal(part.inputs["x"][1::2], part.inputs["x"][::2] + 1)


# -- arrays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labels": np.full(40, 3)}, "label 3 of sample 1 is out of range; classes are 0 to 2"),
        ({"labels": np.full(40, -1)}, "label -1 of sample 1 is out of range"),
        ({"labels": np.zeros(39, int)}, "different lengths: [39, 40]"),
        ({"labels": np.zeros(40)}, "no whole numbers"),
        ({"labels": np.zeros((40, 2), int)}, "give one number per sample"),
        ({"pixels": None}, "has no array 'pixels'; it holds labels"),
        ({"pixels": np.zeros((40, 4, 4))}, "the model takes batch×1×4×4"),
        ({"pixels": np.full((40, 1, 4, 4), np.nan)}, "holds NaN"),
        ({"pixels": np.full((40, 1, 4, 4), "a")}, "the model takes float32"),
        ({"pixels": np.full((40, 1, 4, 4), None)}, "no readable .npz"),  # objects would be pickles
        ({"pixels": np.zeros((0, 1, 4, 4)), "labels": np.zeros(0, int)}, "holds no samples"),
    ],
)
def test_bad_arrays(tmp_path, changes, expected):
    assert expected in line(images(), arrays(tmp_path / "eval.npz", 40, **changes))


def test_arrays_without_labels(tmp_path):
    data = load_data(images(), {"eval": str(arrays(tmp_path / "eval.npz", 40, labels=None))}, 0)
    assert data.verification.labels is None


def test_truncated_arrays(tmp_path):
    path = arrays(tmp_path / "eval.npz")
    path.write_bytes(path.read_bytes()[:200])
    assert "no readable .npz" in line(images(), path)


def test_token_arrays(tmp_path, tokenizer):
    path = tmp_path / "eval.npz"
    np.savez(path, input_ids=np.full((20, 8), 7))
    assert "token id 7 is out of range; ids are 0 to 6" in line(texts(tokenizer), path)
    ids = np.full((20, 8), 3)
    mask = np.ones((20, 8), int)
    mask[:, 6:] = 0
    np.savez(path, input_ids=ids, attention_mask=mask)
    split = load_data(texts(tokenizer, "causal-lm"), {"eval": str(path)}, 0).search
    assert (split.labels[:, :6] == 3).all()
    assert (split.labels[:, 6:] == -100).all()


# -- texts -----------------------------------------------------------------------------------------


def jsonl(path, samples):
    path.write_text("\n".join(json.dumps(s) for s in samples))
    return path


def test_texts_with_labels(tmp_path, tokenizer):
    samples = [{"text": "a good film" if i % 2 else "bad", "label": i % 2} for i in range(40)]
    (tmp_path / "eval.csv").write_text("text,label\n" + "\n".join(f"{s['text']},{s['label']}" for s in samples))
    for path in (jsonl(tmp_path / "eval.jsonl", samples), tmp_path / "eval.csv"):
        data = load_data(texts(tokenizer), {"eval": str(path)}, 0)
        split = data.verification
        assert split.inputs["input_ids"].shape == (24, 3)
        assert split.inputs["input_ids"].dtype == np.int64
        np.testing.assert_array_equal(split.inputs["attention_mask"].sum(1), np.where(split.labels, 3, 1))


def test_texts_of_a_language_model_become_windows(tmp_path, tokenizer):
    path = tmp_path / "eval.txt"
    path.write_text("\n".join(["a good film"] * 100))
    data = load_data(texts(tokenizer, "causal-lm"), {"eval": str(path)}, 0)
    assert data.search.inputs["input_ids"].shape == (15, 8)  # 400 tokens with their ends, 50 windows
    np.testing.assert_array_equal(data.search.inputs["input_ids"][0], [6, 3, 5, 1, 6, 3, 5, 1])
    np.testing.assert_array_equal(data.search.labels, data.search.inputs["input_ids"])
    path.write_text("good film")
    assert "holds 3 tokens, one window needs 8" in line(texts(tokenizer, "causal-lm"), path)


def test_pairs_of_texts_carry_scores(tmp_path, tokenizer):
    path = jsonl(tmp_path / "eval.jsonl", [{"text": "good", "text2": "bad film", "label": i / 30} for i in range(30)])
    split = load_data(texts(tokenizer, "embedding"), {"eval": str(path)}, 0).search
    assert split.labels.dtype == np.float32
    np.testing.assert_array_equal(split.inputs["attention_mask"].sum(1)[:4], [1, 2, 1, 2])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "holds no samples"),
        ('{"text": "good", "label": 0}\n{"text": ', "line 2 is no JSON"),
        ("[1]", "line 1 is no object"),
        ('{"texts": "good", "label": 0}', "sample 1 has no 'text'; it holds texts, label"),
        ('{"text": "good", "label": 2}', "label 2 of sample 1 is out of range; classes are 0 to 1"),
        ('{"text": "good", "label": "fine"}', "label 'fine' of sample 1 is no class number"),
        ('{"text": "good", "label": 1}\n{"text": "", "label": 1}', "'text' of sample 2 is empty"),
    ],
)
def test_bad_texts(tmp_path, tokenizer, content, expected):
    path = tmp_path / "eval.jsonl"
    path.write_text(content)
    assert expected in line(texts(tokenizer), path)


def test_texts_need_a_tokenizer(tmp_path):
    path = jsonl(tmp_path / "eval.jsonl", [{"text": "good", "label": 0}])
    assert "has no tokenizer for texts; give an .npz with the arrays pixels" in line(images(), path)


def test_files_that_are_not_there_or_unknown(tmp_path, tokenizer):
    assert "no such file; check the path" in line(texts(tokenizer), tmp_path / "nothing.csv")
    (tmp_path / "eval.xlsx").write_bytes(b"x")
    assert "unknown file type '.xlsx'" in line(texts(tokenizer), tmp_path / "eval.xlsx")
    (tmp_path / "eval.csv").write_bytes("text\ncafé".encode("latin-1"))
    assert "is not UTF-8 text" in line(texts(tokenizer), tmp_path / "eval.csv")


# -- images ----------------------------------------------------------------------------------------


def test_image_folders(tmp_path):
    for number, name in enumerate(("cat", "dog", "owl")):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.fromarray(np.full((8, 8), 80 * number, np.uint8)).save(tmp_path / name / f"{i}.png")
    split = load_data(images(), {"eval": str(tmp_path)}, 0).verification
    assert split.inputs["pixels"].shape == (18, 1, 4, 4)
    np.testing.assert_allclose(split.inputs["pixels"][:, 0, 0, 0], split.labels * 80 / 255, rtol=1e-6)
    assert "label 2 of sample 21 is out of range" in line(images(classes=2), tmp_path)
    (tmp_path / "owl" / "0.png").write_bytes(b"x")
    assert "is no readable image" in line(images(), tmp_path)


def test_a_model_is_judged_on_a_folder_of_images(tmp_path):
    """The digits of scikit-learn as PNG files, which hold what the zoo's own arrays hold."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:200], digits.target[:200], strict=True)):
        (tmp_path / "digits" / str(label)).mkdir(parents=True, exist_ok=True)
        scaled = (pixels / 16 * 255).round().astype(np.uint8)
        Image.fromarray(scaled).save(tmp_path / "digits" / str(label) / f"{number}.png")
    files = {"eval": str(tmp_path / "digits")}
    source = open_source("zoo:digits-cnn", task=None, arch=None, metric="", files=files, seed=0)
    assert source.task.evaluate(source.predict, source.data.verification).value > 0.9


def test_folders_without_class_folders(tmp_path):
    assert "holds no class folders with images" in line(images(), tmp_path)
