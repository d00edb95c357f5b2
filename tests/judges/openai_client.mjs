// OpenAI's own client for JavaScript: node openai_client.mjs FOLDER_WITH_NODE_MODULES MODEL
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [folder, model] = process.argv.slice(2);
const { OpenAI } = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL: process.env.OPENAI_BASE_URL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Say hello." }];
const add = { name: "add", description: "Adds.", parameters: { type: "object" } };

async function chats() {
  const answer = await client.chat.completions.create({ model, messages });
  assert.equal(answer.choices[0].message.content, "Hello.");
  const options = { include_usage: true };
  const stream = client.chat.completions.stream({ model, messages, stream_options: options });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const whole = await stream.finalChatCompletion();
  assert.equal(text, "Hello.");
  assert.equal(whole.choices[0].finish_reason, "stop");
  assert.ok(whole.usage.completion_tokens);
}

async function callsTools() {
  const tools = [{ type: "function", function: add }];
  const stream = client.chat.completions.stream({ model, messages, tools });
  const message = await stream.finalMessage();
  const [call] = message.tool_calls;
  assert.equal(call.function.name, "add");
  const result = { role: "tool", tool_call_id: call.id, content: "4" };
  const answer = await client.chat.completions.create({
    model,
    messages: [...messages, message, result],
  });
  assert.equal(answer.choices[0].message.content, "Hello.");
}

async function responds() {
  const tools = [{ type: "function", strict: false, ...add }];
  const called = await client.responses.stream({ model, input: messages, tools }).finalResponse();
  const [call] = called.output;
  assert.equal(call.name, "add");
  const result = { type: "function_call_output", call_id: call.call_id, output: "4" };
  const answer = await client.responses.create({ model, input: [...messages, call, result] });
  assert.equal(answer.output_text, "Hello.");
}

async function embedsAndLists() {
  // The client asks for base64 and decodes it.
  const { data } = await client.embeddings.create({ model, input: ["a cat", "a dog"] });
  assert.deepEqual(data.map((each) => [...each.embedding]), [[0.5, -1], [0.5, -1]]);
  const ids = [];
  for await (const each of client.models.list()) ids.push(each.id);
  assert.deepEqual(ids, ["org/tiny"]);
}

async function fails() {
  await assert.rejects(client.chat.completions.create({ model: "no/no", messages }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
}

for (const each of [chats, callsTools, responds, embedsAndLists, fails]) {
  await each();
  console.log("passed", each.name);
}
