"""Run by the clients' Python: langchain-openai, invoked, in a batch, and as a stream. Prints JSON."""

import json
import sys

from langchain_openai import OpenAI

model = OpenAI(
    base_url=sys.argv[1],
    api_key="-",
    model="longhand",
    temperature=0.9,
    top_p=0.95,
    max_tokens=30,
    seed=7,
    max_retries=0,
)
answers = {
    "invoke": model.invoke("hello"),
    "batch": model.batch(["hello", "so it is"]),
    "stream": "".join(model.stream("hello")),
    "stop": model.invoke("hello", stop=["e"]),
}
print(json.dumps(answers))
