"""Visual Haystacks: pictures as documents of a benchmark, each needle at each tenth of them."""

import json

import pytest
import torch

from selfextend_rag.cli import main
from selfextend_rag.evals.benchmarks import BenchmarkError, Source, SyntheticOptions, selected_tasks
from selfextend_rag.evals.methods import LoadedModel, MethodOptions, methods_of
from selfextend_rag.evals.suite.report import page
from selfextend_rag.evals.suite.rows import RowFile
from selfextend_rag.evals.suite.run import SuiteOptions, run_suite
from selfextend_rag.evals.suite.summary import summary_of, table
from tests.evals.records import Words
from tests.tiny import byte_tokenizer, tiny_llama
from tests.zoo import vision

QUESTION = "For the image with a truck, is there a dog?"


def put(folder, *names):
    (folder / "coco/val2017").mkdir(parents=True, exist_ok=True)
    found = []
    for name in names:
        path = folder / f"coco/val2017/{name}.png"
        if not path.exists():
            path.write_bytes(vision.png(48, 32, seed=sum(map(ord, name))))
        found.append(f"coco/val2017/{name}.png")
    return found


def record(needles, others, question=QUESTION, answer="yes"):
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "pos_image": needles, "neg_image": others}


def write(folder, kind, count, *records, under="VHs_qa/VHs_full"):
    path = folder / under / f"{kind}_needle/visual_haystack_{count}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))


def single(folder, count, records=1, **more):
    made = []
    for n in range(records):
        others = put(folder, *(f"{count}-{n}-{x}" for x in range(count - 1)))
        answer = ("yes", "no")[n % 2]
        made.append(record(put(folder, f"needle-{n}"), others, answer=answer))
    write(folder, "single", "oracle" if count == 1 else count, *made, **more)


def task_of(folder, name):
    tasks, _ = selected_tasks([name], Source(folder), SyntheticOptions())
    (task,) = tasks
    return task, list(task.items(Words()))


def names(item):
    return [picture.name for picture in item.pictures]


@pytest.mark.parametrize(
    ("count", "places", "depths"),
    [
        (1, [0], [0.0]),
        (3, [0, 1, 2], [0.0, 0.3, 0.6]),
        (10, list(range(10)), [x / 10 for x in range(10)]),
        (25, list(range(0, 25, 2)), [0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.9]),
    ],
)
def test_a_needle_is_at_each_tenth_of_its_haystack(tmp_path, count, places, depths):
    single(tmp_path, count)
    _, items = task_of(tmp_path, f"vhs/single/{'oracle' if count == 1 else count}")
    assert [names(item).index("needle-0.png") for item in items] == places
    assert [item.groups["depth"] for item in items] == depths
    for item in items:
        assert len(set(names(item))) == item.groups["pictures"] == count
        others = [name for name in names(item) if name != "needle-0.png"]
        assert others == [f"{count}-0-{x}.png" for x in range(count - 1)]
        assert (item.document, item.record) == ("", "0")
        assert [picture.start for picture in item.pictures] == [0] * count
    (question,) = items[0].questions
    assert question.text == f"\n\nQuestion: {QUESTION} Answer yes or no.\nAnswer:"
    assert (question.gold, question.answer, question.others) == ({"answer": "yes"}, "Yes", ("No",))


def test_several_needles_are_shuffled_the_same_each_time(tmp_path):
    needles, others = put(tmp_path, "a", "b"), put(tmp_path, *(f"x{n}" for n in range(18)))
    asked = "For all images with a truck, do all of them contain a dog?"
    made = record(needles, others, asked, "No")
    write(tmp_path, "multi", 20, made, made)
    task, items = task_of(tmp_path, "vhs/multi")
    assert [item.groups for item in items] == [{"pictures": 20, "needles": 2}] * 2
    assert names(items[0]) == names(task_of(tmp_path, "vhs/multi/20")[1][0])
    given = [name.rpartition("/")[2] for name in needles + others]
    for item in items:
        assert sorted(names(item)) == sorted(given)
    assert len({tuple(given), *(tuple(names(item)) for item in items)}) == 3
    assert items[0].questions[0].gold == {"answer": "no"}
    assert "shuffled" in task.note


@pytest.mark.parametrize(
    ("inside", "under", "pictures"),
    [
        ("", "VHs_qa/VHs_full", ""),
        ("VHs_qa/VHs_small", "VHs_qa/VHs_small", ""),
        ("VHs_qa", "VHs_qa/VHs_full", "coco/"),  # records that name pictures from COCO's folder on
        ("here", "here", ""),
    ],
)
def test_pictures_are_found_from_any_folder_of_the_data(tmp_path, inside, under, pictures):
    found = [name.removeprefix(pictures) for name in put(tmp_path, "a", "b")]
    write(tmp_path, "single", 2, record(found[:1], found[1:]), under=under)
    _, items = task_of(tmp_path / inside, "vhs")
    assert [names(item) for item in items] == [["a.png", "b.png"], ["b.png", "a.png"]]


def test_other_numbers_of_pictures_are_tasks_too(tmp_path):
    single(tmp_path, 7)
    assert len(task_of(tmp_path, "vhs/single/7")[1]) == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"neg_image": ["coco/val2017/gone.png"]}, "picture coco/val2017/gone.png is not there"),
        ({"neg_image": ["../secret.png"]}, "picture ../secret.png is not named from the folder"),
        ({"neg_image": ["/etc/passwd"]}, "picture /etc/passwd is not named from the folder"),
        ({"neg_image": ["coco/val2017/text.png"]}, "text.png is a damaged or unusual picture"),
        ({"neg_image": "coco"}, "must be lists of names"),
        ({"pos_image": []}, "pos_image names no picture"),
        ({"conversations": []}, "conversations must be a question and its answer"),
        ({"conversations": [{"value": "?"}, {}]}, "conversations must be a question"),
    ],
)
def test_records_that_can_not_be_asked_are_refused_by_name(tmp_path, change, said):
    put(tmp_path, "a")
    (tmp_path / "coco/val2017/text.png").write_text("no picture")
    good = record(put(tmp_path, "a"), [])
    write(tmp_path, "single", 2, good, {**good, **change})
    with pytest.raises(BenchmarkError, match=r"visual_haystack_2\.json, record 1: ") as error:
        task_of(tmp_path, "vhs/single/2")
    assert said in str(error.value)


def test_an_answer_is_right_if_it_says_the_word_and_chance_is_half(tmp_path):
    single(tmp_path, 1, records=2)
    task, items = task_of(tmp_path, "vhs")
    yes, no = (item.questions[0] for item in items)
    for text, right, said in (
        ("Yes, there is.", 100, 100),
        ("**YES**", 100, 100),
        ("There is no dog.", 0, 100),
        ("Nothing of yesterday", 0, 0),
        ("", 0, 0),
    ):
        scores = {"score": right, "compliance": said, "chance": 50}
        assert task.score(yes, text) == scores
    assert task.score(no, "No.")["score"] == 100
    assert task.further([task.score(yes, "Yes"), task.score(no, "?")]) == {
        "compliance": 50,
        "chance": 50,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    single(folder, 2, records=5)
    single(folder, 5, records=5)
    return folder


@pytest.fixture(scope="module")
def loaded():
    model, processor = vision.model("llava").double(), vision.processor("llava")
    return LoadedModel("tiny", model, processor.tokenizer, 200, processor)


def run(folder, loaded, data, *used, task="vhs", likelihood=False):
    tasks, _ = selected_tasks([task], Source(data), SyntheticOptions())
    options = MethodOptions(likelihood=likelihood)
    with RowFile(folder) as file:
        return run_suite(
            tasks,
            methods_of(used, loaded, options),
            loaded,
            file,
            SuiteOptions(answer_tokens=3),
        )


def test_a_benchmark_of_pictures_is_run_resumed_and_shown(tmp_path, loaded, data):
    results = run(tmp_path, loaded, data, "plain", "selfextend", likelihood=True)
    assert (results.computed, results.found) == (2 * 5 * (2 + 5), 0)
    summary = summary_of(results)
    again = run(tmp_path, loaded, data, "plain", "selfextend", likelihood=True)
    assert (again.computed, again.found) == (0, 70)
    assert summary_of(again) == summary
    figures = summary["tasks"]["vhs/single/5"]["columns"]["selfextend"]
    assert figures["chance"] == figures["by_chance"] == 50
    assert figures["items"] == 5  # records, whose places are not independent
    assert figures["answered"] == 25
    assert figures["interval"] is not None
    assert list(figures["groups"]["depth"]) == ["0.0", "0.2", "0.4", "0.6", "0.8"]
    assert figures["prompt_tokens"] > 200  # the window
    assert "(chance 50)" in table(summary)
    shown = page(results, summary, {"model": "tiny"}, plot=True)
    assert "vhs/single: score by depth and number of pictures" in shown
    assert "by chance 50.00" in shown


def test_a_haystack_beyond_the_window_is_extended_and_within_it_the_stock_models(
    tmp_path, loaded, data
):
    wide = LoadedModel("wide", loaded.model, loaded.tokenizer, 4096, loaded.processor)
    narrow = run(tmp_path, loaded, data, "selfextend", task="vhs/single/5")
    figures = summary_of(narrow)["tasks"]["vhs/single/5"]["columns"]["selfextend"]
    assert figures["group_sizes"] != [1]
    results = run(tmp_path, wide, data, "selfextend", task="vhs/single/2")
    (rows,) = results.rows.values()
    _, items = task_of(data, "vhs/single/2")
    parts = [{"type": "text", "text": items[0].before}, *({"type": "image"} for _ in "12")]
    parts.append({"type": "text", "text": items[0].questions[0].text})
    processor = loaded.processor
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    images = [picture.image() for picture in items[0].pictures]
    given = processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False).to(
        dtype=torch.float64
    )
    assert rows[0].prompt_tokens == given["input_ids"].shape[1]
    with torch.no_grad():
        said = loaded.model.generate(**given, max_new_tokens=3, do_sample=False)
    expected = said[0, given["input_ids"].shape[1] :]
    assert rows[0].text == processor.tokenizer.decode(expected, skip_special_tokens=True)


def test_rows_of_other_pictures_or_processors_are_not_taken(tmp_path, loaded):
    single(tmp_path / "data", 2)
    first = run(tmp_path / "out", loaded, tmp_path / "data", "plain")
    assert first.computed == 2
    (tmp_path / "data/coco/val2017/2-0-0.png").write_bytes(vision.png(48, 32, seed=5))
    assert run(tmp_path / "out", loaded, tmp_path / "data", "plain").computed == 2
    other = vision.processor("llava")
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    changed = LoadedModel("tiny", loaded.model, loaded.tokenizer, 200, other)
    assert run(tmp_path / "out", changed, tmp_path / "data", "plain").computed == 2


def test_what_can_not_look_at_pictures_says_so(tmp_path, loaded, data):
    blind = LoadedModel("text", tiny_llama(window=200), byte_tokenizer())
    for model, method, said in (
        (blind, "plain", "load a vision model"),
        (loaded, "oracle", "oracle finds passages of text, and 0/0 has 2 pictures"),
    ):
        results = run(tmp_path / method, model, data, method, task="vhs/single/2")
        (rows,) = results.rows.values()
        assert {row.status for row in rows} == {"refused"}
        assert said in rows[0].reason


def test_the_command_line_loads_a_vision_model_with_its_processor(tmp_path, data, capsys):
    vision.model("idefics3").save_pretrained(tmp_path / "model")
    vision.processor("idefics3").save_pretrained(tmp_path / "model")
    arguments = ["eval", "vhs/single/2", "--model", str(tmp_path / "model"), "--data", str(data)]
    arguments += ["--pretraining-window", "200", "--answer-tokens", "2", "--limit", "3"]
    arguments += ["--no-plot", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "(chance 50)" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").open()]
    assert {row["status"] for row in rows} == {"answered"}
    assert {row["record"] for row in rows} == {"0", "1"}
