"""What the serving benchmarks make of what they measured."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from benchmarks.serving.client import Ask, AskFailed, Connection, openai_token, pair_token
from benchmarks.serving.profiler import by_package, module_of, parse, self_time, tree
from benchmarks.serving.stats import added_ms, interval, percentile, ratio
from benchmarks.serving.swaps import growth, stalls, usable


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0.25, 0.5, 0.99)] == [1.0, 2.0, 4.0]


def test_an_interval_of_like_samples_holds_the_figure() -> None:
    ours, theirs = [1.0, 1.1, 1.2, 1.3, 1.4], [2.0, 2.2, 2.4, 2.6, 2.8]
    low, high = interval(ours, theirs, ratio)
    assert low <= ratio(ours, theirs) == 0.5 <= high
    assert added_ms([0.004, 0.005, 0.009], [0.002, 0.003, 0.004]) == pytest.approx(2.0)


def test_a_swap_is_charged_the_longest_gap_that_overlaps_it() -> None:
    gaps = [(1.0, 0.1), (1.2, 0.2), (3.0, 1.9)]  # ends and lengths: the last one began at 1.1
    assert stalls(gaps, [(0.95, 1.05)])["most"] == 0.2
    assert stalls(gaps, [(1.15, 1.16)])["most"] == 1.9
    assert stalls(gaps, [(3.5, 4.0)])["most"] == 0.0


def test_growth_is_told_from_after_the_warm_up_to_the_end() -> None:
    grown = growth([(4 + swap, 100.0 + (swap >= 900) * 10.0) for swap in range(1001)], 4, 1000)
    assert (grown["after warm-up, MiB"], grown["at the end, MiB"], grown["growth"]) == (100.0, 110.0, 0.1)
    assert grown["KiB a swap"] == 12.8  # 10 MiB over 800 swaps


def test_a_prompt_is_used_where_all_weights_differ_and_choose_clearly() -> None:
    from benchmarks.serving import swaps

    told = {(which, prompt): (f"{which}", 1.0) for which in range(2) for prompt in swaps.PROMPTS}
    told[0, swaps.PROMPTS[0]] = ("1", 1.0)  # as the other says
    told[1, swaps.PROMPTS[1]] = ("1", swaps.CLEAR / 2)  # a hair's breadth
    said, prompts = usable(told, 2)
    assert prompts == list(swaps.PROMPTS[2:])
    assert said[0, swaps.PROMPTS[2]] == "0"


def test_a_profile_is_read_back_and_shown_as_a_tree() -> None:
    stacks = parse("run:main;serve.a:f;serve.b:g 60\nrun:main;serve.a:f 30\nrun:main;uvicorn.x:send 10\n")
    assert stacks == Counter(
        {("run:main", "serve.a:f", "serve.b:g"): 60, ("run:main", "serve.a:f"): 30, ("run:main", "uvicorn.x:send"): 10}
    )
    assert tree(stacks, 0.2) == ["90% serve.a:f", "  60% serve.b:g"]
    assert tree(stacks, 0.1)[-1] == "10% uvicorn.x:send"
    assert by_package(stacks) == [("serve", 0.9), ("uvicorn", 0.1)]
    assert self_time(stacks)[0] == ("serve.b:g", 0.6)


def test_a_profile_tells_no_folder() -> None:
    assert module_of("/somewhere/venv/lib/python3.11/site-packages/uvicorn/server.py") == "uvicorn.server"
    assert module_of("/usr/lib/python3.11/asyncio/runners.py") == "asyncio.runners"
    assert module_of("/home/me/hustings/serve/routes/pairs.py") == "serve.routes.pairs"


def test_only_events_with_text_count_as_tokens() -> None:
    assert openai_token(b'data: {"choices":[{"delta":{"content":" word"}}]}')
    assert not openai_token(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}')
    assert not openai_token(b'data: {"choices":[{"delta":{}}]}')
    assert pair_token(b'event: delta\ndata: {"position":"a","content":"x"}')
    assert not pair_token(b"event: done\ndata: {}")


async def test_the_client_reads_events_however_they_are_cut_and_keeps_its_connection() -> None:
    event = b"event: delta\ndata: {}\n\n"
    cut = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (event[:9], event[9:] + event))
    answers = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + cut + b"0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 429 Too Many\r\ncontent-length: 4\r\n\r\nfull",
    ]
    opened = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while answers:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            writer.write(answers.pop(0))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    connection, ask = Connection(url), Ask.post(url, {}, pair_token)
    assert len((await connection.ask(ask)).tokens_at) == 2
    assert (await connection.ask(ask)).events == [b"{}"]
    with pytest.raises(AskFailed, match="429: b'full'"):
        await connection.ask(ask)
    assert opened == 1
    connection.close()
    server.close()
    await server.wait_closed()
