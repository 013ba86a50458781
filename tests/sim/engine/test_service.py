import aiohttp
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from dualmap_sim.engine import expected_text


async def scrape(http: aiohttp.ClientSession) -> dict[str, float]:
    async with http.get("/metrics") as reply:
        assert reply.status == 200
        families = list(text_string_to_metric_families(await reply.text()))
    return {
        sample.name
        + "".join(f"|{sample.labels[key]}" for key in ("finished_reason", "le") if key in sample.labels): (
            sample.value
        )
        for family in families
        for sample in family.samples
        if sample.labels.get("model_name", "sim-model") == "sim-model"
    }


async def test_metrics_have_vllms_names_and_count(http: aiohttp.ClientSession) -> None:
    for _ in range(2):
        async with http.post("/v1/completions", json={"prompt": "m" * 400, "max_tokens": 7}) as reply:
            assert reply.status == 200
    found = await scrape(http)
    assert found["vllm:num_requests_running"] == 0
    assert found["vllm:num_requests_waiting"] == 0
    assert found["vllm:kv_cache_usage_perc"] == 0
    assert found["vllm:prefix_cache_queries_total"] == 200
    assert found["vllm:prefix_cache_hits_total"] == 96
    assert found["vllm:prompt_tokens_total"] == 200
    assert found["vllm:generation_tokens_total"] == 14
    assert found["vllm:request_success_total|length"] == 2
    assert found["vllm:time_to_first_token_seconds_count"] == 2
    assert found["vllm:time_to_first_token_seconds_bucket|+Inf"] == 2
    assert found["vllm:time_to_first_token_seconds_sum"] > 0


async def test_the_cache_config_is_in_its_labels(http: aiohttp.ClientSession) -> None:
    async with http.get("/metrics") as reply:
        families = {family.name: family for family in text_string_to_metric_families(await reply.text())}
    (sample,) = families["vllm:cache_config_info"].samples
    assert sample.labels["num_gpu_blocks"] == "26880"
    assert sample.labels["block_size"] == "16"


async def test_health_version_models(http: aiohttp.ClientSession) -> None:
    async with http.get("/health") as reply:
        assert (reply.status, await reply.text()) == (200, "")
    async with http.get("/version") as reply:
        assert "version" in await reply.json()
    async with http.get("/v1/models") as reply:
        cards = (await reply.json())["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("sim-model", None),
        ("sim-lora", "sim-model"),
    ]
    assert cards[0]["max_model_len"] == 163_840


async def test_tokenize_and_back(http: aiohttp.ClientSession) -> None:
    text = "grüße " + expected_text(b"p", 3)
    async with http.post("/tokenize", json={"prompt": text, "return_token_strs": True}) as reply:
        body = await reply.json()
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"]) == -(-len(text.encode()) // 4)
    async with http.post("/detokenize", json={"tokens": body["tokens"]}) as reply:
        assert (await reply.json())["prompt"] == text


async def test_rendering_says_what_the_engine_would_run(http: aiohttp.ClientSession) -> None:
    messages = [{"role": "user", "content": "hello"}]
    async with http.post("/tokenize", json={"messages": messages}) as reply:
        ids = (await reply.json())["tokens"]
    async with http.post("/v1/chat/completions/render", json={"messages": messages}) as reply:
        rendered = await reply.json()
    assert (rendered["token_ids"], rendered["model"]) == (ids, "sim-model")
    async with http.post("/v1/completions/render", json={"prompt": ids}) as reply:
        assert [one["token_ids"] for one in await reply.json()] == [ids]
    async with http.post("/v1/chat/completions/render", json={"messages": []}) as reply:
        assert reply.status == 400


async def test_embeddings_depend_on_the_input_alone(client: AsyncOpenAI) -> None:
    async def embed(text: list[str]) -> list[list[float]]:
        reply = await client.embeddings.create(model="sim-model", input=text, encoding_format="float")
        return [row.embedding for row in reply.data]

    first = await embed(["a", "b"])
    assert first == await embed(["a", "b"])
    assert first[0] != first[1]
    assert abs(sum(value * value for value in first[0]) - 1) < 1e-9
