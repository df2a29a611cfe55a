"""The `anthropic` package against a running ring at TANDEM_URL, and what it shares with chat."""

import os
import unittest

import anthropic
import openai

URL = os.environ["TANDEM_URL"]
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {"name": "sum", "description": "Adds numbers.",
        "input_schema": {"type": "object", "properties": {"of": {"type": "array"}}}}


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.api = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
        cls.chat = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0).chat
        cls.model = cls.api.models.list().data[0].id

    def fields(self, **fields):
        more = {"temperature": 0, **fields.pop("extra_body", {})}
        return {"model": self.model, "max_tokens": 12, "messages": MESSAGES, "extra_body": more,
                **fields}

    def create(self, **fields):
        return self.api.messages.create(**self.fields(**fields))


class Messages(Case):
    def test_whole_is_what_chat_says(self):
        message = self.create(system="Be brief")
        self.assertEqual((message.type, message.role), ("message", "assistant"))
        self.assertTrue(message.id.startswith("msg_"))
        system = [{"role": "system", "content": "Be brief"}]
        same = self.chat.completions.create(
            model=self.model, max_tokens=12, temperature=0, messages=system + MESSAGES)
        text = "".join(block.text for block in message.content)
        self.assertEqual(text, same.choices[0].message.content)
        usage = message.usage
        self.assertEqual(usage.input_tokens + usage.cache_read_input_tokens,
                         same.usage.prompt_tokens)
        self.assertEqual(usage.output_tokens, same.usage.completion_tokens)
        reasons = {"length": "max_tokens", "stop": "end_turn"}
        self.assertEqual(message.stop_reason, reasons[same.choices[0].finish_reason])

    def test_stream_is_the_whole_in_pieces(self):
        whole = self.create()
        with self.api.messages.stream(**self.fields()) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual([block.text for block in final.content],
                         [block.text for block in whole.content])
        self.assertEqual(text, "".join(block.text for block in whole.content))
        self.assertEqual(final.stop_reason, whole.stop_reason)
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
        names = [event.type for event in self.create(stream=True)]
        self.assertEqual((names[0], names[-2:]), ("message_start", ["message_delta", "message_stop"]))

    def test_a_stop_sequence_is_told(self):
        text = self.create(max_tokens=24, extra_body={"ignore_eos": True}).content[0].text
        stop = text[len(text) // 2:][:3]
        message = self.create(
            max_tokens=24, stop_sequences=[stop], extra_body={"ignore_eos": True})
        self.assertEqual((message.stop_reason, message.stop_sequence), ("stop_sequence", stop))
        self.assertEqual("".join(block.text for block in message.content), text[:text.index(stop)])

    def test_tools_and_their_results_are_in_the_prompt(self):
        messages = [
            *MESSAGES,
            {"role": "assistant", "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "toolu_1", "name": "sum", "input": {"of": [1, 2]}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "3"},
                {"type": "text", "text": "So?"}]}]
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        message = self.create(messages=messages, tools=[TOOL], tool_choice=choice)
        count = self.api.messages.count_tokens(model=self.model, messages=messages, tools=[TOOL])
        usage = message.usage
        self.assertEqual(usage.input_tokens + usage.cache_read_input_tokens, count.input_tokens)
        plain = self.api.messages.count_tokens(model=self.model, messages=MESSAGES)
        self.assertGreater(count.input_tokens, plain.input_tokens)

    def test_errors_are_the_packages_own(self):
        with self.assertRaises(anthropic.NotFoundError):
            self.create(model="claude")
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.create(messages=[{"role": "user", "content": [{"type": "image", "source": {}}]}])
        body = caught.exception.body
        self.assertEqual((body["type"], body["error"]["type"]), ("error", "invalid_request_error"))
        self.assertIn("messages[0].content[0].type", body["error"]["message"])


if __name__ == "__main__":
    unittest.main()
