// The Node OpenAI SDK against a router: node node_client.mjs URL CALLS.json; prints what it saw as one JSON object.
import { readFileSync } from "node:fs";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const settings = { model: "assistant", temperature: 0 };
const seen = {};

seen.models = [];
for await (const model of client.models.list()) seen.models.push(model.id);

const chat = await client.chat.completions.create({ ...settings, messages, max_tokens: 12, logprobs: true, top_logprobs: 2 });
seen.chat = { text: chat.choices[0].message.content, usage: chat.usage, logprobs: chat.choices[0].logprobs.content.length };

seen.stream = "";
const stream = await client.chat.completions.create({ ...settings, messages, max_tokens: 12, stream: true });
for await (const chunk of stream) seen.stream += chunk.choices[0]?.delta?.content ?? "";

const running = client.chat.completions.stream({ ...settings, messages, max_tokens: 12, stream_options: { include_usage: true } });
seen.helper = (await running.finalChatCompletion()).usage;

const completion = await client.completions.create({ ...settings, prompt: "The capital of France is", max_tokens: 6 });
seen.completion = completion.choices[0].text;

const calls = JSON.parse(readFileSync(process.argv[3]));
const tools = [{ type: "function", function: { name: "look_up", description: "Looks up a city", parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] } } }];
const called = await client.chat.completions.create({ ...settings, messages: calls, max_tokens: 60, tools });
seen.tool = called.choices[0].message.tool_calls[0].function;
const calling = client.chat.completions.stream({ ...settings, messages: calls, max_tokens: 60, tools });
seen.streamed_tool = (await calling.finalChatCompletion()).choices[0].message.tool_calls[0].function;

const schema = { type: "object", properties: { capital: { type: "string" } }, required: ["capital"], additionalProperties: false };
const format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
const typed = await client.chat.completions.create({ ...settings, messages, max_tokens: 60, response_format: format });
seen.json = typed.choices[0].message.content;

seen.responses = { text: "", types: [] };
const events = await client.responses.create({ ...settings, input: "Say hello", max_output_tokens: 8, stream: true });
for await (const event of events) {
  seen.responses.types.push(event.type);
  if (event.type === "response.output_text.delta") seen.responses.text += event.delta;
  if (event.type === "response.completed") seen.responses.usage = event.response.usage;
}

const embedding = await client.embeddings.create({ model: "embedder", input: ["one", "two"] });
seen.embeddings = embedding.data.map((one) => one.embedding.length);

const failure = async (work) => work().then(() => "none", (error) => [error.constructor.name, error.status, error.code, error.message]);
seen.unknown = await failure(() => client.chat.completions.create({ model: "nobody", messages }));
seen.wrong = await failure(() => client.chat.completions.create({ model: 3, messages }));
const file = await toFile(Buffer.alloc(200_000, "RIFF"), "a.wav");
seen.audio = await failure(() => client.audio.transcriptions.create({ file, model: "assistant" }));

console.log(JSON.stringify(seen));
