import json
from pathlib import Path
from typing import Any

import pytest

from dualmap_sim.workloads import TraceError, WorkloadError, ideal_hit_share, read_mooncake
from dualmap_sim.workloads.importing import ImportOptions, ImportReport, import_trace

SYSTEM = {"role": "system", "content": "be brief. " * 500}
SECRET = "the patient is called Smith"


def run(tmp_path: Path, text: str, **options: Any) -> tuple[ImportReport, list[dict[str, Any]]]:
    source, out = tmp_path / "log", tmp_path / "trace.jsonl"
    source.write_text(text)
    report = import_trace(source, out, ImportOptions(**{"salt": "s"} | options))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(read_mooncake(out)) == len(lines) == report.requests
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "trace.jsonl"]
    return report, lines


def jsonl(*records: object) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def chat(text: str, **more: object) -> dict[str, object]:
    return {"model": "m", "messages": [SYSTEM, {"role": "user", "content": text}], **more}


def test_mooncake_is_passed_on_with_its_optional_fields(tmp_path: Path) -> None:
    first = {"timestamp": 5000, "input_length": 600, "output_length": 2, "hash_ids": [1, 2]}
    earlier = first | {"timestamp": 2000, "tenant": "t", "slo_s": 1.5}
    report, lines = run(tmp_path, jsonl(first, earlier))
    assert (report.format, report.requests, report.duration_s) == ("mooncake", 2, 3.0)
    # Stamps count from the earliest, though it came second.
    assert lines == [first | {"timestamp": 3000}, earlier | {"timestamp": 0}]


def test_bodies_wherever_they_are_and_times_as_they_come(tmp_path: Path) -> None:
    report, lines = run(
        tmp_path,
        jsonl(
            chat("one", timestamp=1_700_000_000, user="alice", max_tokens=7),
            {
                "request": chat("two"),
                "ts": 1_700_000_001_000,
                "usage": {"prompt_tokens": 1400, "completion_tokens": 9},
            },
            {"body": json.dumps(chat("three")), "time": "2023-11-14T22:13:22Z", "conversation_id": 12},
            {
                "params": chat("four"),
                "response": {"created": 1_700_000_003, "usage": {"prompt_tokens": 1300}},
            },
            {"request": {"method": "POST", "body": chat("five")}, "created": 1_700_000_004, "slo_s": 2},
        ),
    )
    assert [line["timestamp"] for line in lines] == [0, 1000, 2000, 3000, 4000]
    assert [line["output_length"] for line in lines] == [7, 9, 200, 200, 200]
    assert [line["input_length"] for line in lines][1::2] == [1400, 1300]
    assert len({tuple(line["hash_ids"][:2]) for line in lines}) == 1
    assert len({line["hash_ids"][2] for line in lines}) == 5
    assert report.guessed_outputs == 4
    assert report.models == {"m": 5}
    assert lines[0]["tenant"] not in (None, "alice")
    assert "session" in lines[2]
    assert lines[4]["slo_s"] == 2


def test_prompts_of_text_and_token_ids_and_the_rest(tmp_path: Path) -> None:
    _, lines = run(
        tmp_path,
        jsonl(
            {"prompt": "a" * 4096, "time": 0},
            {"prompt": [7] * 1024, "time": 1, "usage": {"completion_tokens": 0}},
            {"input": [{"role": "user", "content": "hi"}], "instructions": "be kind", "time": 2},
        ),
        bytes_per_token=8,
    )
    assert [line["input_length"] for line in lines][:2] == [512, 1024]
    assert [len(line["hash_ids"]) for line in lines] == [1, 2, 1]
    assert lines[1]["output_length"] == 1


def test_nothing_of_a_prompt_or_a_name_is_written_and_a_salt_repeats(tmp_path: Path) -> None:
    log = jsonl(chat(SECRET, time=0, user="smith", session_id="smith-1"))
    _, lines = run(tmp_path, log)
    written = (tmp_path / "trace.jsonl").read_text()
    assert "mith" not in written
    assert run(tmp_path, log)[1] == lines
    other = run(tmp_path, log, salt="other")[1]
    assert not {*other[0]["hash_ids"]} & {*lines[0]["hash_ids"]}
    assert other[0]["tenant"] != lines[0]["tenant"]
    named = run(tmp_path, log, keep_names=True)[1]
    assert (named[0]["tenant"], named[0]["session"]) == ("smith", "smith-1")


def test_models_share_nothing_and_can_be_chosen(tmp_path: Path) -> None:
    log = jsonl(chat("x", time=0), chat("x", time=1, model="n"), chat("x", time=2, cache_salt="c"))
    report, lines = run(tmp_path, log)
    assert len({line["hash_ids"][0] for line in lines}) == 3
    assert report.models == {"m": 2, "n": 1}
    assert run(tmp_path, log, models=("n",))[0].requests == 1


def test_bytes_per_token_are_measured(tmp_path: Path) -> None:
    body = {"prompt": "abcdef" * 1000, "time": 0, "usage": {"prompt_tokens": 1000, "completion_tokens": 5}}
    report, lines = run(tmp_path, jsonl(body))
    assert report.bytes_per_token == 6
    assert (lines[0]["input_length"], len(lines[0]["hash_ids"])) == (1000, 2)


BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"


def test_burstgpt_shares_nothing(tmp_path: Path) -> None:
    rows = "5,ChatGPT,1472,18,1490,Conversation log\n45,GPT-4,1087,0,1087,API log\n"
    report, lines = run(tmp_path, f"\ufeff{BURST.upper()}\r\n{rows}")
    assert report.format == "burstgpt"
    assert [line["timestamp"] for line in lines] == [0, 40_000]
    assert [line["output_length"] for line in lines] == [18, 1]
    assert ideal_hit_share(read_mooncake(tmp_path / "trace.jsonl")) == 0
    assert run(tmp_path, f"{BURST}\n{rows}", models=("GPT-4",))[1][0]["input_length"] == 1087


def test_a_burstgpt_session_extends_its_prompt(tmp_path: Path) -> None:
    rows = ["1,s,1000,9", "2,other,1000,9", "3,s,1700,9", "4,s,600,9", "5,,600,9"]
    _, lines = run(tmp_path, "\n".join(["Timestamp,Session ID,Request tokens,Response tokens", *rows]))
    ids = [line["hash_ids"] for line in lines]
    assert ids[2][:2] == ids[0]
    assert len({ids[0][0], ids[1][0], ids[3][0], ids[4][0]}) == 4
    assert lines[0]["session"] == lines[2]["session"] != lines[1]["session"]
    assert "session" not in lines[4]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "truncated"),
        ('{"time": 0}', "no request body"),
        (jsonl(chat("x")), "no time: none of timestamp"),
        (jsonl(chat("x", time="soon")), "not a time: 'soon'"),
        (jsonl({"messages": [], "time": 0}), "no messages and no prompt"),
        (jsonl({"prompt": [1, "a"], "time": 0}), "a text or a list of token ids"),
        (jsonl({"prompt": [-1], "time": 0}), "a text or a list of token ids"),
        (jsonl(chat("x", time=0, usage={"prompt_tokens": 10**9})), "a prompt of 1000000000 tokens"),
        (jsonl(chat("x", time=0, usage={"prompt_tokens": -5})), "a prompt of -5 tokens"),
        (jsonl({"messages": "hello", "time": 0}), "Expected `array`"),
        ('{"messages": ' + "[" * 50_000, "malformed|recursion|truncated"),
        ('{"prompt": "\\ud800", "time": 0}', "malformed"),
    ],
)
def test_a_bad_line_is_named_or_skipped(tmp_path: Path, bad: str, message: str) -> None:
    log = jsonl(chat("x", time=0)) + "\n" + bad.rstrip("\n") + "\n" + jsonl(chat("y", time=1))
    with pytest.raises(TraceError, match=message) as raised:
        run(tmp_path, log)
    assert str(raised.value).startswith(f"{tmp_path / 'log'}:3: ")
    assert not (tmp_path / "trace.jsonl").exists()
    assert not list(tmp_path.glob("*.part*"))
    report, _ = run(tmp_path, log, skip_bad=True)
    assert (report.requests, report.bad_lines) == (2, 1)
    assert report.bad_examples[0].startswith(f"{tmp_path / 'log'}:3: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no request in it"),
        ("hello\n", ":1: neither JSON nor a CSV header"),
        ("Timestamp,Request tokens\n1,2\n", ":1: no column 'response tokens'"),
        (f"{BURST}\n5,m,many,3,3,x\n", ":2: request tokens must be a number from 1"),
        (f"{BURST}\n5,m,1e12,3,3,x\n", ":2: request tokens must be a number from 1"),
        (f'{BURST}\n5,"m,3,3,3,x\n', ":2: unexpected end of data"),
    ],
)
def test_a_file_that_is_no_log(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        run(tmp_path, text)


def test_files_that_cannot_be_and_options_that_make_no_sense(tmp_path: Path) -> None:
    options = ImportOptions(salt="s")
    with pytest.raises(TraceError, match="nothing: No such file"):
        import_trace(tmp_path / "nothing", tmp_path / "out", options)
    log = tmp_path / "log"
    log.write_text(jsonl(chat("x", time=0)))
    with pytest.raises(TraceError, match=r"nowhere/out\.part: No such file"):
        import_trace(log, tmp_path / "nowhere" / "out", options)
    with pytest.raises(TraceError, match="written over the log"):
        import_trace(log, log, options)
    with pytest.raises(WorkloadError, match="no format is called 'xml'"):
        ImportOptions(salt="s", format="xml")
    with pytest.raises(WorkloadError, match="bytes per token"):
        ImportOptions(salt="s", bytes_per_token=0)
