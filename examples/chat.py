"""Ask one question and stream the answer; then say which instance gave it, and why. Needs Python alone."""

import argparse
import http.client
import json
import os
from urllib.parse import urlsplit


def main() -> None:
    """`python examples/chat.py [--url URL] [--model MODEL] TEXT`; a key comes from DUALMAP_API_KEY."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--model", default="sim-model")
    parser.add_argument("text")
    args = parser.parse_args()

    url = urlsplit(args.url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=600)
    headers = {"content-type": "application/json"}
    if key := os.environ.get("DUALMAP_API_KEY"):
        headers["authorization"] = f"Bearer {key}"
    message = {"role": "user", "content": args.text}
    body = {"model": args.model, "stream": True, "max_tokens": 64, "messages": [message]}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(json.load(response)["error"]["message"])
    for line in response:
        if line.startswith(b"data: {"):
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise SystemExit(event["error"]["message"])
            for choice in event["choices"]:
                print(choice["delta"].get("content") or "", end="", flush=True)
    print()
    for name in ("instance", "reason", "candidates", "cached-chunks", "predicted-ttft-ms"):
        print(f"{name:18} {response.headers[f'x-dualmap-{name}']}")


if __name__ == "__main__":
    main()
