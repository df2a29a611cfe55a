"""The `openai` package against a running ring at TANDEM_URL. No model is needed to be clever: the
tests look at shapes, counts, and at what must be equal."""

import asyncio
import http.client
import json
import os
import unittest
import urllib.error
import urllib.request

import openai
import pydantic

URL = os.environ["TANDEM_URL"]
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def client(**options):
    return openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, **options)


def post(path, body):
    """Status and JSON of a route that the package does not know."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.api = client()
        cls.model = cls.api.models.list().data[0].id

    def chat(self, **fields):
        fields = {"max_tokens": 12, "temperature": 0, "messages": MESSAGES, **fields}
        return self.api.chat.completions.create(model=self.model, **fields)

    def complete(self, **fields):
        fields = {"max_tokens": 12, "temperature": 0, "prompt": "The capital of", **fields}
        return self.api.completions.create(model=self.model, **fields)


class City(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=8)
    people: int = pydantic.Field(ge=1, le=9999)
    old: bool


class Structured(Case):
    def test_the_package_parses_what_it_asked_for(self):
        answer = self.api.chat.completions.parse(
            model=self.model, messages=MESSAGES, max_tokens=120, response_format=City, seed=1)
        choice = answer.choices[0]
        self.assertEqual(choice.finish_reason, "stop")
        self.assertIsInstance(choice.message.parsed, City)

    def test_regex_and_choice(self):
        said = self.chat(extra_body={"regex": "[a-z]{3}-[0-9]{2}"}).choices[0]
        self.assertRegex(said.message.content, r"\A[a-z]{3}-[0-9]{2}\Z")
        self.assertEqual(said.finish_reason, "stop")
        said = self.complete(extra_body={"guided_choice": ["yes", "no"]}).choices[0]
        self.assertIn(said.text, ("yes", "no"))

    def test_a_grammar_that_does_not_compile_is_named(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(response_format={"type": "json_schema", "json_schema": {
                "name": "a", "schema": {"type": "thing"}}})
        self.assertEqual(caught.exception.param, "response_format.json_schema.schema")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(extra_body={"regex": "[a"})
        self.assertEqual(caught.exception.param, "regex")


class Models(Case):
    def test_list_and_retrieve(self):
        model = self.api.models.retrieve(self.model)
        self.assertEqual((model.id, model.object), (self.model, "model"))
        self.assertGreater(model.max_model_len, 0)

    def test_another_model_is_not_found(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.api.chat.completions.create(model="gpt-4", messages=MESSAGES)
        self.assertEqual(caught.exception.code, "model_not_found")


class Chat(Case):
    def test_whole(self):
        answer = self.chat()
        choice = answer.choices[0]
        self.assertEqual((choice.index, choice.message.role), (0, "assistant"))
        self.assertIn(choice.finish_reason, ("stop", "length"))
        self.assertTrue(answer.id.startswith("chatcmpl-"))
        self.assertEqual(answer.model, self.model)
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertIsNotNone(usage.prompt_tokens_details.cached_tokens)

    def test_stream_is_the_whole_in_pieces(self):
        whole = self.chat()
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        *deltas, last = chunks
        self.assertEqual(last.choices, [])
        self.assertEqual(last.usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(deltas[0].choices[0].delta.role, "assistant")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in deltas)
        self.assertEqual(text, whole.choices[0].message.content)
        reasons = [chunk.choices[0].finish_reason for chunk in deltas]
        self.assertEqual(reasons, [None] * (len(deltas) - 1) + [whole.choices[0].finish_reason])
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)

    def test_stream_helper_accumulates(self):
        with self.api.chat.completions.stream(
            model=self.model, messages=MESSAGES, max_tokens=8, temperature=0
        ) as stream:
            for _ in stream:
                pass
            final = stream.current_completion_snapshot
        whole = self.chat(max_tokens=8)
        self.assertEqual(final.choices[0].message.content, whole.choices[0].message.content)

    def test_without_stream_options_every_chunk_has_a_choice(self):
        self.assertTrue(all(chunk.choices for chunk in self.chat(stream=True)))

    def test_a_second_call_finds_the_prompt_cached(self):
        long = [{"role": "user", "content": "once upon a time " * 40}]
        first = self.chat(messages=long, max_tokens=4)
        second = self.chat(messages=long, max_tokens=4)
        self.assertGreater(second.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertEqual(first.choices[0].message.content, second.choices[0].message.content)

    def test_content_parts_are_text(self):
        parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
        self.assertEqual(self.chat(messages=parts).choices[0].message.content,
                         self.chat().choices[0].message.content)

    def test_seed_repeats_and_absent_seed_varies(self):
        hot = {"temperature": 1.5, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
        said = lambda **more: self.chat(**hot, **more).choices[0].message.content
        self.assertEqual(said(seed=7), said(seed=7))
        self.assertGreater(len({said() for _ in range(4)}), 1)

    def test_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=3, max_tokens=4)
        content = answer.choices[0].logprobs.content
        self.assertEqual(len(content), answer.usage.completion_tokens)
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertAlmostEqual(token.top_logprobs[0].logprob, token.logprob, places=4)
            ranks = [top.logprob for top in token.top_logprobs]
            self.assertEqual(ranks, sorted(ranks, reverse=True))

    def test_max_tokens_bounds_and_ignore_eos_fills(self):
        answer = self.chat(max_tokens=30, extra_body={"ignore_eos": True})
        self.assertEqual(answer.usage.completion_tokens, 30)
        self.assertEqual(answer.choices[0].finish_reason, "length")
        newer = self.chat(max_tokens=openai.NOT_GIVEN, max_completion_tokens=1)
        self.assertEqual(newer.usage.completion_tokens, 1)

    def test_many_at_once(self):
        async def ask_all():
            api = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
            ask = lambda: api.chat.completions.create(
                model=self.model, messages=MESSAGES, max_tokens=8, temperature=0)
            answers = await asyncio.gather(*(ask() for _ in range(16)))
            await api.close()
            return answers

        texts = {answer.choices[0].message.content for answer in asyncio.run(ask_all())}
        self.assertEqual(len(texts), 1)


class Tools(Case):
    """The models here call no tools and think no thoughts: what they write is content."""

    SUM = {"type": "function", "function": {
        "name": "sum", "description": "Adds numbers.",
        "parameters": {"type": "object", "properties": {"of": {"type": "array"}}}}}

    def test_content_comes_unharmed_whole_and_streamed(self):
        said = lambda **more: self.chat(max_tokens=40, tools=[self.SUM], **more)
        plain = said(tool_choice="none").choices[0]
        auto = said(tool_choice="auto", parallel_tool_calls=False).choices[0]
        self.assertIsNone(auto.message.tool_calls)
        self.assertEqual(auto.message.content, plain.message.content)
        self.assertEqual(auto.finish_reason, plain.finish_reason)
        deltas = [chunk.choices[0].delta for chunk in said(stream=True)]
        self.assertEqual("".join(delta.content or "" for delta in deltas), plain.message.content)
        self.assertFalse(any(delta.tool_calls for delta in deltas))

    def test_the_prompt_is_what_the_template_makes_of_tools_and_turns(self):
        call = {"id": "call_1", "type": "function",
                "function": {"name": "sum", "arguments": '{"of": [1, 2]}'}}
        messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "call_1", "content": "3"}]
        answer = self.chat(messages=messages, tools=[self.SUM])
        _, tokens = post("/tokenize", {"messages": messages, "tools": [self.SUM]})
        self.assertEqual(answer.usage.prompt_tokens, tokens["count"])

    def test_a_call_that_is_required_fits_its_schema(self):
        number = {"type": "integer", "minimum": 0, "maximum": 99}
        parameters = {"type": "object", "properties": {"left": number, "right": number},
                      "required": ["left", "right"], "additionalProperties": False}
        tool = {"type": "function", "function": {"name": "sum", "parameters": parameters}}
        fields = {"tools": [tool], "parallel_tool_calls": False, "max_tokens": 120}
        for choice in ("required", {"type": "function", "function": {"name": "sum"}}):
            said = self.chat(tool_choice=choice, **fields).choices[0]
            self.assertEqual(said.finish_reason, "tool_calls")
            (call,) = said.message.tool_calls
            self.assertEqual(call.function.name, "sum")
            arguments = json.loads(call.function.arguments)
            self.assertEqual(set(arguments), {"left", "right"})
            self.assertTrue(all(0 <= value <= 99 for value in arguments.values()))
            chunks = self.chat(tool_choice=choice, stream=True, **fields)
            deltas = [chunk.choices[0].delta for chunk in chunks]
            pieces = [delta.tool_calls[0].function for delta in deltas if delta.tool_calls]
            self.assertEqual("".join(piece.arguments for piece in pieces),
                             call.function.arguments)

    def test_what_is_wrong_with_tools_is_named(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(tools=[{"type": "function", "function": {}}])
        self.assertEqual(caught.exception.param, "tools[0].function.name")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(tools=[self.SUM], tool_choice={"type": "function",
                                                     "function": {"name": "product"}})
        self.assertEqual(caught.exception.param, "tool_choice")

    def test_thoughts_are_told_only_where_the_model_has_them(self):
        plain = self.chat().choices[0].message.content
        for separate in (True, False):
            extra = {"separate_reasoning": separate,
                     "chat_template_kwargs": {"enable_thinking": False}}
            message = self.chat(extra_body=extra).choices[0].message
            self.assertEqual(message.content, plain)
            self.assertNotIn("reasoning_content", message.model_dump())


class Completions(Case):
    def test_whole_and_stream(self):
        whole = self.complete()
        self.assertTrue(whole.id.startswith("cmpl-"))
        self.assertEqual(whole.object, "text_completion")
        text = "".join(chunk.choices[0].text for chunk in self.complete(stream=True))
        self.assertEqual(text, whole.choices[0].text)

    def test_a_stop_string_ends_it(self):
        fields = {"max_tokens": 24, "extra_body": {"ignore_eos": True}}
        text = self.complete(**fields).choices[0].text
        stop = text[len(text) // 2:][:3]
        for stream in (False, True):
            answer = self.complete(stop=stop, stream=stream, **fields)
            chunks = list(answer) if stream else [answer]
            self.assertEqual("".join(chunk.choices[0].text for chunk in chunks),
                             text[:text.index(stop)])
            self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")

    def test_token_ids_and_several_prompts(self):
        _, tokens = post("/tokenize", {"prompt": "The capital of"})
        one = self.complete().choices[0].text
        self.assertEqual(self.complete(prompt=tokens["tokens"]).choices[0].text, one)
        answer = self.complete(prompt=["The capital of", "Once"])
        self.assertEqual([choice.index for choice in answer.choices], [0, 1])
        self.assertEqual(answer.choices[0].text, one)
        answer = self.complete(prompt=[tokens["tokens"]] * 2)
        self.assertEqual([choice.text for choice in answer.choices], [one, one])

    def test_n_outputs_share_a_prompt(self):
        drawn = {"temperature": 1, "extra_body": {"ignore_eos": True}}
        several = self.complete(**drawn, seed=5, n=3)
        self.assertEqual([choice.index for choice in several.choices], [0, 1, 2])
        texts = [choice.text for choice in several.choices]
        self.assertEqual(len(set(texts)), 3)
        for seed, text in zip([5, 6, 7], texts):
            alone = self.complete(**drawn, seed=seed)
            self.assertEqual(alone.choices[0].text, text)
        self.assertEqual(several.usage.prompt_tokens, alone.usage.prompt_tokens)
        self.assertEqual(several.usage.completion_tokens, 36)
        streamed = ["", "", ""]
        for chunk in self.complete(**drawn, seed=5, n=3, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        self.assertEqual(streamed, texts)
        self.assertEqual(len(self.chat(n=2).choices), 2)

    def test_best_of_answers_the_most_probable(self):
        drawn = {"temperature": 1, "seed": 5, "logprobs": 0, "extra_body": {"ignore_eos": True}}
        mean = lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.tokens)
        made = self.complete(**drawn, n=4).choices
        best = self.complete(**drawn, n=2, best_of=4)
        ranked = sorted(made, key=mean, reverse=True)
        self.assertEqual([choice.text for choice in best.choices],
                         [choice.text for choice in ranked[:2]])
        self.assertEqual([choice.index for choice in best.choices], [0, 1])
        self.assertEqual(best.usage.completion_tokens, 48)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(best_of=2, stream=True)
        self.assertEqual(caught.exception.param, "best_of")

    def test_sixteen_tokens_by_default(self):
        answer = self.complete(max_tokens=openai.NOT_GIVEN, extra_body={"ignore_eos": True})
        self.assertEqual(answer.usage.completion_tokens, 16)

    def test_logprobs(self):
        logprobs = self.complete(logprobs=2, max_tokens=3).choices[0].logprobs
        self.assertEqual(len(logprobs.tokens), len(logprobs.token_logprobs))
        for own, top in zip(logprobs.token_logprobs, logprobs.top_logprobs):
            self.assertAlmostEqual(max(top.values()), own, places=4)


    def test_echo_tells_of_the_prompt(self):
        _, tokens = post("/tokenize", {"prompt": "The capital of"})
        made = self.complete().choices[0].text
        echoed = self.complete(echo=True, logprobs=1)
        self.assertEqual(echoed.choices[0].text, "The capital of" + made)
        for max_tokens in (0, 2):
            answer = self.complete(echo=True, logprobs=1, max_tokens=max_tokens,
                                   extra_body={"ignore_eos": True})
            logprobs = answer.choices[0].logprobs
            count = tokens["count"] + max_tokens
            self.assertEqual(len(logprobs.token_logprobs), count)
            self.assertIsNone(logprobs.token_logprobs[0])
            self.assertTrue(all(number <= 0 for number in logprobs.token_logprobs[1:]))
            self.assertEqual(logprobs.token_logprobs[1:tokens["count"]],
                             echoed.choices[0].logprobs.token_logprobs[1:tokens["count"]])
            self.assertEqual(answer.usage.completion_tokens, max_tokens)


class Embeddings(Case):
    def embed(self, texts, **fields):
        return self.api.embeddings.create(model=self.model, input=texts, **fields)

    def test_one_and_several(self):
        one = self.embed("The capital of")
        self.assertEqual(one.object, "list")
        vector = one.data[0].embedding
        self.assertAlmostEqual(sum(x * x for x in vector), 1, places=5)
        several = self.embed(["Once", "The capital of"])
        self.assertEqual([each.index for each in several.data], [0, 1])
        # Beside another prompt it is computed in other tiles, and pages are bf16.
        for a, b in zip(several.data[1].embedding, vector):
            self.assertAlmostEqual(a, b, delta=1e-3)
        self.assertGreater(several.usage.prompt_tokens, one.usage.prompt_tokens)

    def test_formats_say_the_same(self):
        # The package asks for base64 by itself and decodes it.
        decoded = self.embed("Once").data[0].embedding
        numbers = self.embed("Once", encoding_format="float").data[0].embedding
        self.assertEqual(len(decoded), len(numbers))
        for a, b in zip(decoded, numbers):
            self.assertAlmostEqual(a, b, places=6)
        mean = self.embed("Once upon", extra_body={"pooling": "mean"}).data[0].embedding
        self.assertNotEqual(mean, self.embed("Once upon").data[0].embedding)

    def test_dimensions_are_the_models(self):
        self.embed("a", dimensions=len(self.embed("a").data[0].embedding))
        with self.assertRaises(openai.BadRequestError) as caught:
            self.embed("a", dimensions=2)
        self.assertEqual(caught.exception.param, "dimensions")

    def test_scores(self):
        body = {"query": "The capital of", "items": [" France", " Spain"],
                "label_token_ids": [5, 6], "apply_softmax": True}
        status, answer = post("/v1/score", body)
        self.assertEqual(status, 200, answer)
        for scores in answer["scores"]:
            self.assertAlmostEqual(sum(scores), 1, places=5)
        _, answer = post("/v1/score", {"text_1": "Once", "text_2": ["Once", "Spain"]})
        same, other = (pair["score"] for pair in answer["data"])
        self.assertAlmostEqual(same, 1, places=4)
        self.assertLess(other, same)


class Errors(Case):
    def refused(self, **fields):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(**fields)
        return caught.exception

    def test_the_field_is_named(self):
        self.assertEqual(self.refused(temperature=3).param, "temperature")
        self.assertEqual(self.refused(prompt="").param, "prompt")
        words = {"bad_words": ["x"]}
        self.assertEqual(self.refused(extra_body=words).code, "unsupported_parameter")
        self.assertEqual(self.refused(prompt=[10**9]).param, "prompt[0]")

    def test_too_long(self):
        self.assertEqual(self.refused(max_tokens=10**6).code, "context_length_exceeded")
        self.assertEqual(self.refused(prompt="word " * 200_000).code, "context_length_exceeded")

    def test_status_of_broken_json(self):
        request = urllib.request.Request(f"{URL}/v1/completions", b"{", method="POST")
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        self.assertEqual(caught.exception.code, 400)

    def until_requests_are(self, count):
        """`run` ends this if it never comes."""
        while True:
            with urllib.request.urlopen(f"{URL}/server_info") as response:
                if json.load(response)["requests"] == count:
                    break

    def test_a_client_that_leaves_a_stream_frees_the_servers(self):
        for _ in range(3):
            stream = self.complete(max_tokens=1500, stream=True, extra_body={"ignore_eos": True})
            next(iter(stream))
            stream.close()
        self.until_requests_are(0)

    def test_a_client_that_does_not_wait_for_an_answer_frees_the_servers(self):
        body = {"prompt": "a", "max_tokens": 1500, "ignore_eos": True}
        host = URL.removeprefix("http://")
        connection = http.client.HTTPConnection(host)
        connection.request("POST", "/v1/completions", json.dumps(body))
        self.until_requests_are(1)
        connection.close()
        self.until_requests_are(0)


class Native(Case):
    def test_generate(self):
        sampling = {"max_new_tokens": 5, "temperature": 0, "ignore_eos": True}
        status, answer = post("/generate", {"text": "The capital of", "sampling_params": sampling})
        self.assertEqual(status, 200, answer)
        self.assertEqual(len(answer["output_ids"]), 5)
        meta = answer["meta_info"]
        self.assertEqual(meta["finish_reason"], {"type": "length", "length": 5})
        self.assertEqual(meta["completion_tokens"], 5)
        same = self.complete(max_tokens=5, extra_body={"ignore_eos": True})
        self.assertEqual(answer["text"], same.choices[0].text)
        _, batch = post("/generate", {"input_ids": [[5, 6], [7]], "sampling_params": sampling})
        self.assertEqual([len(one["output_ids"]) for one in batch], [5, 5])


if __name__ == "__main__":
    unittest.main()
