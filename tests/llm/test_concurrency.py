"""Many threads, several readings, one model: everybody gets the answer that he would get alone."""

from __future__ import annotations

import random
import threading

import pytest

from selfextend_rag.llm import LongContextLLM

FILLER = "And darkness was upon the face of the deep. "
CODES = ("48213", "90617", "35528")


def text(code, before, after):
    fact = f"The pass key is {code}. Remember it. {code} is the pass key. "
    return FILLER * before + fact + FILLER * after


@pytest.mark.slow
def test_sixteen_threads_ask_two_hundred_questions_of_three_readings():
    budget = 8 << 20
    llm = LongContextLLM.bundled(prefix_cache_bytes=budget)
    texts = [text(CODES[0], 1, 12), text(CODES[1], 0, 150), text(CODES[2], 0, 250)]
    readings = [llm.read(one, max_new_tokens=8) for one in texts]
    assert [reading.plan.extended for reading in readings] == [False, True, True]
    questions = ["What is the pass key?", "What was upon the face of the deep?"]
    alone = {(n, q): readings[n].ask(q).text for n in range(3) for q in questions}
    prompts = [f"{one}\n\nQuestion: {questions[0]}\nAnswer:" for one in texts[:2]]
    generated = {p: llm.generate(p, max_new_tokens=6).text for p in prompts}
    held = sum(reading.nbytes for reading in readings)

    randomness = random.Random(0)
    jobs = [(randomness.randrange(3), randomness.choice(questions)) for _ in range(180)]
    jobs += [(3, randomness.choice(prompts)) for _ in range(20)]
    randomness.shuffle(jobs)
    wrong, most, lock = [], [0], threading.Lock()

    def work():
        while True:
            with lock:
                if not jobs:
                    return
                which, asked = jobs.pop()
            if which == 3:
                right = llm.generate(asked, max_new_tokens=6).text == generated[asked]
            else:
                right = readings[which].ask(asked).text == alone[which, asked]
            with lock:
                most[0] = max(most[0], llm.prefix_cache.nbytes)
                wrong.extend([] if right else [(which, asked)])

    threads = [threading.Thread(target=work, daemon=True) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    assert wrong == []
    assert [alone[n, questions[0]] for n in range(3)] == list(CODES)
    assert 0 < most[0] <= budget
    assert sum(reading.nbytes for reading in readings) == held
