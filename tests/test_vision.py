"""Images: the one-pass encoder on tiny vision-language models with random weights, and drawings to retrieve."""

import itertools
import random
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import word_tokenizer
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageType
from PIL import Image, ImageDraw
from tokenizers import processors
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # torchvision is not needed
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import laser_lab as ll
from laser_lab.data.readers import RetrievalTask
from laser_lab.lame import reconstruct
from laser_lab.probing.tracing import think_layers
from laser_lab.probing.vocabulary import logit_lens
from laser_lab.training.run import set_method
from laser_lab.vision import VisionBackbone

COUNTS, COLOURS, SHAPES = "one two three".split(), "red green blue yellow".split(), "circle square triangle".split()
COMBINATIONS = list(itertools.product(COUNTS, COLOURS, SHAPES))
SIZE = 32
CHANCE = sum(1 / np.log2(rank + 1) for rank in range(1, 11)) / len(COMBINATIONS)
"""nDCG@10 of a random order, one of the 36 being relevant: 0.126"""
MARGIN = 0.5
"""By how much retrieval must rise above chance. With four seeds it rose by 0.68 to 0.86."""
SPECIAL = ["<image>", "<start>", "<end>", "<video>"]


def draw(combination: tuple[str, str, str], rng: random.Random) -> Image.Image:
    count, colour, shape = combination
    image = Image.new("RGB", (SIZE, SIZE), "black")
    pen = ImageDraw.Draw(image)
    for cell in rng.sample(range(4), COUNTS.index(count) + 1):
        x, y = (cell % 2) * 16 + rng.randint(1, 3), (cell // 2) * 16 + rng.randint(1, 3)
        if shape == "triangle":
            pen.polygon([(x + 5, y), (x, y + 11), (x + 11, y + 11)], fill=colour)
        else:
            (pen.ellipse if shape == "circle" else pen.rectangle)([x, y, x + 11, y + 11], fill=colour)
    return image


def tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *COUNTS, *COLOURS, *SHAPES, "find"]
    return word_tokenizer(words, additional_special_tokens=SPECIAL)


TEXT = dict(
    vocab_size=len(tokenizer()),
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=2,
    eos_token_id=3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """LLaVA around a CLIP vision encoder and Qwen3, 0.1 M random parameters, as `save_pretrained` writes it."""
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    options = dict(patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    processor = LlavaProcessor(image_processor=images, tokenizer=tokenizer(), **options)
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=Qwen3Config(**TEXT, head_dim=12, tie_word_embeddings=True),
            vision_config=vision,
            image_token_id=4,
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
        )
    )
    path = tmp_path_factory.mktemp("llava")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


def load(folder):
    return ll.load(folder, prompts={"query": "find ", "document": ""}, device="cpu")


def lame(folder, thinking_steps=4):
    torch.manual_seed(0)
    model = load(folder)
    set_method(model, ll.METHODS["lame"].replace(thinking_steps=thinking_steps))
    return model.eval()


ITEMS = [
    draw(COMBINATIONS[0], random.Random(0)),
    {"text": "red circle", "image": draw(COMBINATIONS[8], random.Random(1))},
    "two blue square",
    "",
    {"text": "three", "image": None},
]


def test_text_image_or_both_in_one_batch(folder, tmp_path):
    model = lame(folder)
    assert isinstance(model.encoder.backbone, VisionBackbone) and model.supports("image")
    together = model.encode(ITEMS, batch_size=8)
    for item, expected in zip(ITEMS, together):
        assert model.encode(item) @ expected >= 0.9999
    thoughts = ll.think(model, ITEMS)
    np.testing.assert_allclose(thoughts.embeddings.numpy(), together, atol=1e-5)
    assert thoughts.texts == ["<image>", "<image> red circle", "two blue square", "", "three"]
    assert len(ll.nearest_tokens(model, thoughts, top=1)) == 5 * 4
    image = ITEMS[0]
    assert model.encode(image) @ model.encode(draw(COMBINATIONS[-1], random.Random(0))) < 0.9999, "the image is seen"
    assert model.encode({"text": "find", "image": image}) @ model.encode(image, prompt="find") >= 0.9999
    model.save_pretrained(str(tmp_path / "saved"))
    np.testing.assert_allclose(ll.load(tmp_path / "saved", device="cpu").encode(ITEMS), together, atol=1e-5)


def test_a_chat_template_places_the_image(folder):
    model = lame(folder)
    plain = model.encode(ITEMS[1])
    model.encoder.backbone.processor.chat_template = (
        "{% for m in messages %}{% for c in m.content %}"
        "{% if c.type == 'image' %}<start> <image> <end>{% else %} {{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    assert plain @ model.encode(ITEMS[1]) < 0.9999
    features = model.encoder.preprocess([ITEMS[1], "two"])
    kept = [i for i in features["input_ids"][0].tolist() if i not in (0, 4)]
    assert model.tokenizer.convert_ids_to_tokens(kept) == ["<start>", "<end>", "red", "circle"]
    assert features["attention_mask"][1].sum() == 1, "a text alone stays as it is"
    assert features["text_ids"].tolist() == model.tokenizer(["red circle", "two"], padding=True)["input_ids"]


def test_no_double_beginning(folder):
    """Templates of some families begin with the bos that their tokenizers add."""
    model = lame(folder)
    tokenizer, processor = model.tokenizer, model.encoder.backbone.processor
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    processor.chat_template = "<s> <image> red"
    ids = model.encoder.preprocess([ITEMS[0], "red"])["input_ids"]
    assert (ids == 2).sum(1).tolist() == [1, 1]


def test_half_precision(folder):
    model = ll.load(folder, device="cpu", dtype=torch.bfloat16)
    set_method(model, ll.METHODS["lame"].replace(thinking_steps=4))
    found = model.encode(ITEMS)
    assert found.dtype == np.float32 and np.isfinite(found).all()


def test_a_hub_id_is_a_vision_language_model_too(folder, tmp_path, monkeypatch):
    """What the hub's cache holds is read under its id."""
    repository = tmp_path / "models--someone--tiny-llava"
    shutil.copytree(folder, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = ll.load("someone/tiny-llava", device="cpu")
    assert isinstance(model.encoder.backbone, VisionBackbone) and model.encoder.base == "someone/tiny-llava"
    set_method(model, ll.METHODS["lame"])
    assert model.encode(ITEMS).shape == (5, 48)


def test_layers_are_those_of_the_language_model(folder):
    model = lame(folder)
    traced = think_layers(model, ITEMS)
    assert traced.layers.shape == (5, 4, 3, 48)
    torch.testing.assert_close(traced.thoughts.states, ll.think(model, ITEMS).states, atol=1e-5, rtol=1e-4)
    lens = logit_lens(model, traced, top=1)
    last = ll.nearest_tokens(model, traced.thoughts, top=1)
    assert lens[lens.layer == 2].token_id.tolist() == last.token_id.tolist()


def test_long_texts_beside_images_are_truncated(folder, caplog):
    model = lame(folder)
    model.encoder.max_length = 2
    image = ITEMS[0]
    long, short = ({"text": text, "image": image} for text in ("two blue square", "two blue"))
    np.testing.assert_allclose(model.encode(long), model.encode(short), atol=1e-5)
    assert "1 of 1 texts truncated" in caplog.text


@pytest.mark.parametrize("bad", [{}, {"text": None}, {"image": "red.png"}, 3, None])
def test_what_is_no_input_is_named(folder, bad):
    model = lame(folder)
    with pytest.raises(TypeError, match="texts, PIL images or both, but number 1 is"):
        model.encode(["red", bad])


def test_images_need_eyes_and_one_pass(folder, tiny_folder, tmp_path):
    loop, blind = load(folder), lame(tiny_folder)
    for model in (loop, blind, ll.load(tiny_folder, device="cpu")):
        for call in (model.encode, lambda items, model=model: ll.think(model, items)):
            for items in (ITEMS[0], ITEMS[1], [ITEMS[0]], ["red", ITEMS[1]]):
                with pytest.raises(TypeError, match="texts must be strings, but .* Images are read by LaME"):
                    call(items)
    assert loop.encode(["two blue"]).shape == (1, 48), "the loop reads text on the same backbone"
    assert ll.think(loop, ["two blue"], 3).states.shape == (1, 3, 48)
    loop.save_pretrained(str(tmp_path / "loop"))
    again = ll.load(tmp_path / "loop", device="cpu")
    assert again.encode("two blue") @ loop.encode("two blue") > 0.9999 and again.encoder.backbone.processor
    with pytest.raises(TypeError, match="Images are read by LaME"):
        ll.train(loop, drawings(4), "latent", output_dir=tmp_path / "run", max_steps=1, **TEXT_ARGUMENTS)
    with pytest.raises(TypeError, match="texts must be strings"):
        ll.explore(lame(folder), [ITEMS[0]])


def test_a_family_with_positions_in_two_dimensions():
    """Qwen2-VL places images by their ids; padding and neighbours must not move them. (Its own processor needs
    torchvision for videos, so its features are made by hand.)"""
    torch.manual_seed(0)
    text = TEXT | dict(rope_parameters={"rope_type": "default", "mrope_section": [1, 2, 3], "rope_theta": 1e4})
    vision = dict(depth=2, embed_dim=32, hidden_size=48, num_heads=4, patch_size=8, spatial_merge_size=2, mlp_ratio=2)
    ids = dict(image_token_id=4, vision_start_token_id=5, vision_end_token_id=6, video_token_id=7)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    model = Qwen2VLForConditionalGeneration(config).eval()
    backbone = VisionBackbone(model, SimpleNamespace(tokenizer=tokenizer(), chat_template=None))
    images = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, size={"shortest_edge": 256, "longest_edge": 4096})

    def features(image, padding, batch):
        pixels = images([image], return_tensors="pt")
        row = [0] * padding + [5] + [4] * int(pixels["image_grid_thw"].prod() // 4) + [6, 9, 12]
        found = torch.tensor([row] * batch)
        return {
            "input_ids": found,
            "attention_mask": (found != 0).long(),
            "mm_token_type_ids": (found == 4).long(),
            "pixel_values": pixels["pixel_values"].repeat(batch, 1),
            "image_grid_thw": pixels["image_grid_thw"].repeat(batch, 1),
        }

    appended = torch.randn(1, 5, 48)
    with torch.no_grad():
        alone = backbone.read(features(ITEMS[0], 0, 1), appended)
        padded = backbone.read(features(ITEMS[0], 3, 2), appended.expand(2, -1, -1))
        other = backbone.read(features(ITEMS[1]["image"], 0, 1), appended)
    torch.testing.assert_close(padded, alone.expand(2, -1, -1), atol=1e-5, rtol=1e-4)
    assert (other - alone).abs().max() > 1e-3
    assert not model.get_input_embeddings()._forward_hooks


# -- training ------------------------------------------------------------------------------------------------------


def drawings(count: int, seed: int = 1) -> Dataset:
    """Captions to find the drawing of, and drawings to find the caption of, in turns."""
    rng, rows = random.Random(seed), []
    for index in range(count):
        combination = COMBINATIONS[index % len(COMBINATIONS)]
        negative = rng.choice([c for c in COMBINATIONS if c != combination])
        to_image = bool(index // len(COMBINATIONS) % 2)

        def item(c, image):
            return {"text": None if image else " ".join(c), "image": draw(c, rng) if image else None}

        def name(c, kind="drawing" if to_image else "caption"):
            return f"{kind} {' '.join(c)}"

        rows.append(
            {
                "id": f"q{index}",
                "query": item(combination, not to_image),
                "reasoning": [],
                "positives": [item(combination, to_image)],
                "negatives": [item(negative, to_image)],
                "positive_ids": [name(combination)],
                "negative_ids": [name(negative)],
            }
        )
    text, both = Value("string"), {"text": Value("string"), "image": ImageType()}
    kinds = dict(query=both, positives=List(both), negatives=List(both))
    schema = dict(id=text, reasoning=List(text), positive_ids=List(text), negative_ids=List(text)) | kinds
    return Dataset.from_list(rows, features=Features(schema))


ARGUMENTS = dict(
    lora=False,
    thinking_steps=4,
    learning_rate=2e-3,
    per_device_train_batch_size=24,
    save_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
)
TEXT_ARGUMENTS = ARGUMENTS | {"per_device_train_batch_size": 4}


def test_text_to_image_retrieval_is_learned(folder, tmp_path):
    """New drawings of the 36 combinations, found by their captions: nDCG@10 above chance by `MARGIN` or more."""
    rng = random.Random(99)
    names = [" ".join(combination) for combination in COMBINATIONS]
    images = {name: draw(combination, rng) for name, combination in zip(names, COMBINATIONS)}
    right = {name: {name: 1} for name in names}
    task = RetrievalTask("drawings", dict(zip(names, names)), images, right)
    before = ll.evaluate(lame(folder), task)["ndcg@10"]
    assert before < CHANCE + 0.15, "random weights know nothing"
    model = ll.train(load(folder), drawings(720), "lame", output_dir=tmp_path / "run", max_steps=150, **ARGUMENTS)
    assert ll.evaluate(model, task)["ndcg@10"] > CHANCE + MARGIN
    back = RetrievalTask("captions", images, dict(zip(names, names)), right)
    assert ll.evaluate(model, back)["ndcg@10"] > CHANCE + MARGIN
    again = ll.load(tmp_path / "run" / "final", device="cpu")
    np.testing.assert_allclose(again.encode(list(images.values())), model.encode(list(images.values())), atol=1e-4)
    asked = ll.think(again, names, prompt_name="query")
    assert reconstruct(again, asked) == [""] * len(names), "drawings have no words"
    shown = ll.think(again, list(images.values()), prompt_name="query")
    assert np.mean([bool(text) for text in reconstruct(again, shown)]) > 0.5, "captions have"
    ranked = ll.rank(model, task, top=3)
    assert ranked.document.map(lambda image: isinstance(image, Image.Image)).all() and len(ranked) == 36 * 3


def test_stage_one_freezes_the_vision_encoder(folder, tmp_path):
    before = load(folder).encoder.backbone.state_dict()
    method = ll.METHODS["lame"].replace(bottleneck_warmup=0.99)
    model = ll.train(load(folder), drawings(72), method, output_dir=tmp_path / "run", max_steps=3, **ARGUMENTS)
    after = model.encoder.backbone.state_dict()
    assert any("vision_tower" in name for name in before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert model.encoder.reasoner.decoder.start.abs().max() > 0


@pytest.mark.parametrize("lora", [{"r": 4}, {"r": 4, "exclude_modules": ".*vision.*"}])
def test_stage_two_trains_adapters_wherever_there_are(folder, tmp_path, lora):
    method = ll.METHODS["lame"].replace(bottleneck_warmup=0.3)
    arguments = ARGUMENTS | {"lora": lora}
    model = ll.train(load(folder), drawings(72), method, output_dir=tmp_path / "run", max_steps=4, **arguments)
    weights = model.encoder.backbone.state_dict()
    original = load(folder).encoder.backbone.state_dict()
    moved = [name for name, weight in weights.items() if "lora_B" in name and weight.abs().max() > 0]
    for part in ("vision_tower", "projector", "language_model"):
        assert any(part in name for name in moved) == ("exclude_modules" not in lora or part != "vision_tower"), part
    assert all(any(torch.equal(weight, w) for w in weights.values()) for weight in original.values())
    again = ll.load(tmp_path / "run" / "final", device="cpu")
    np.testing.assert_allclose(again.encode(ITEMS), model.encode(ITEMS), atol=1e-5)
