"""An event stream as httpx-sse reads it: every event it passes on, one a line of JSON, until it has passed on so many with data."""

import json
import sys

import httpx
from httpx_sse import connect_sse

url, wanted = sys.argv[1], int(sys.argv[2])
with httpx.Client(timeout=30) as client, connect_sse(client, "GET", url) as source:
    for event in source.iter_sse():
        print(json.dumps([event.event, event.id, event.data]), flush=True)
        wanted -= bool(event.data)
        if wanted == 0:
            break
