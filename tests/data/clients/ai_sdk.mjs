// Drive a server with the AI SDK and @ai-sdk/openai-compatible. Usage: ai_sdk.mjs BASE_URL.

import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";

const baseURL = `${process.argv[2]}/v1`;
const provider = createOpenAICompatible({ name: "conifer", baseURL, includeUsage: true });
const model = provider("any");
const common = { model, temperature: 0, maxRetries: 0 };

const whole = await generateText({ ...common, prompt: "Hello", maxOutputTokens: 8 });
assert.equal(whole.finishReason, "length");
assert.equal(whole.usage.outputTokens, 8);

const stream = streamText({ ...common, prompt: "Hello", maxOutputTokens: 8 });
let text = "";
for await (const part of stream.textStream) text += part;
assert.equal(text, whole.text);
assert.equal((await stream.usage).outputTokens, 8);

const inputSchema = jsonSchema({
  type: "object",
  properties: { city: { type: "string", enum: ["Rome", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
});
const tools = { get_weather: tool({ description: "Weather.", inputSchema }) };
const forced = { ...common, tools, toolChoice: "required", prompt: "Weather in Rome?" };
for (const result of [
  await generateText({ ...forced, maxOutputTokens: 300 }),
  streamText({ ...forced, maxOutputTokens: 300 }),
]) {
  const calls = await result.toolCalls;
  assert(calls.length >= 1);
  assert.equal(calls[0].toolName, "get_weather");
  assert(["Rome", "Oslo"].includes(calls[0].input.city));
}
console.log("ok");
