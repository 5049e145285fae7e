import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp } from "node:fs/promises";
import { request } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { approveAll, CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { describe, expect, it } from "vitest";
import { startEchoModel, stripWrappers } from "../../src/providers/echo.js";
import { ModelProvider } from "../../src/providers/provider.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

const user = (content: unknown) => ({ role: "user", content });

function ask(baseUrl: string, body: unknown, init: RequestInit = {}): Promise<Response> {
  const text = typeof body === "string" ? body : JSON.stringify({ model: "gpt-5", ...(body as object) });
  return fetch(`${baseUrl}/chat/completions`, { method: "POST", body: text, ...init });
}

async function reply(baseUrl: string, messages: unknown[]): Promise<string> {
  const response = await ask(baseUrl, { messages });
  const { choices } = (await response.json()) as { choices: { message: { content: string } }[] };
  return choices[0]?.message.content ?? "";
}

describe("the echo model", () => {
  it("the echo model delays its answer by delayMs or by !delay, streamed or not", async () => {
    await using echo = await startEchoModel({ delayMs: 150 });
    for (const stream of [true, false]) {
      const began = performance.now();
      await (await ask(echo.baseUrl, { messages: [user("slow")], stream })).text();
      expect(performance.now() - began).toBeGreaterThan(140);
    }
    await using slow = await startEchoModel({ delayMs: 500_000 });
    expect(await reply(slow.baseUrl, [user("!delay 0 quick one")])).toBe("[turn 1] quick one");
  });

  it("the echo model calls the tool that a !tool prompt names, and then answers with the tool's result", async () => {
    await using echo = await startEchoModel();
    const prompt = user('!tool bash {"command": "ls"}');
    const whole = (await (await ask(echo.baseUrl, { messages: [prompt] })).json()) as { choices: unknown[] };
    const call = { type: "function", function: { name: "bash", arguments: '{"command": "ls"}' } };
    expect(whole.choices).toMatchObject([
      { message: { content: null, tool_calls: [call] }, finish_reason: "tool_calls" },
    ]);
    const streamed = await (await ask(echo.baseUrl, { messages: [prompt], stream: true })).text();
    expect(streamed).toContain('"name":"bash"');
    expect(streamed).toContain('"finish_reason":"tool_calls"');
    const after = [prompt, { role: "assistant", content: null }, { role: "tool", content: "a.txt" }];
    expect(await reply(echo.baseUrl, after)).toBe("[turn 1] a.txt");
    expect(await reply(echo.baseUrl, [user("!tool bash ls")])).toBe("[turn 1] !tool bash ls");
  });

  it("the echo model fails a turn whose prompt begins with !fail", async () => {
    await using echo = await startEchoModel();
    const response = await ask(echo.baseUrl, { messages: [user("!fail no such luck")] });
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: { message: "no such luck" } });
  });

  it("the echo model ends a turn at once when its client disconnects, or when the model is closed", async () => {
    const echo = await startEchoModel({ delayMs: 60_000 });
    const abort = new AbortController();
    const gone = ask(echo.baseUrl, { messages: [user("x")], stream: true }, { signal: abort.signal });
    const streaming = await gone;
    abort.abort();
    await expect(streaming.text()).rejects.toThrow();
    const waiting = ask(echo.baseUrl, { messages: [user("x")] });
    const ended = expect(waiting).rejects.toThrow();
    await expect.poll(() => echo.requests).toBe(2);
    await echo.close();
    await echo.close();
    await ended; // the request fails at once; its reply was due only after a minute
    await expect(fetch(`${echo.baseUrl}/models`)).rejects.toThrow();
  });

  it.each([
    ["a body that is not JSON", "{", 400],
    ["a body that is not an object", "[]", 400],
    ["no messages", "{}", 400],
    ["no message of a user", '{"messages":[{"role":"system","content":"x"}]}', 400],
    ["messages that are not objects", '{"messages":[null, 3]}', 400],
  ])("the echo model refuses a request with %s", async (_, body, status) => {
    await using echo = await startEchoModel();
    const response = await ask(echo.baseUrl, body);
    expect(response.status).toBe(status);
    expect(await response.json()).toMatchObject({ error: { message: expect.any(String) } });
  });

  it("the echo model refuses a body of more than 32 MB before the client sends it", async () => {
    await using echo = await startEchoModel();
    const sending = request(`${echo.baseUrl}/chat/completions`, {
      method: "POST",
      headers: { "content-length": 33 * 1024 * 1024 },
    });
    sending.flushHeaders();
    const [response] = await once(sending, "response");
    expect(response.statusCode).toBe(413);
    sending.on("error", () => undefined).destroy();
  });
});

describe("the user's own words", () => {
  it.each([
    ["hi", "hi"],
    ["<current_datetime>2026-01-01T00:00:00Z</current_datetime>\n\nhi", "hi"],
    [
      "<current_datetime>x</current_datetime>\n\n<b>bold</b>\nline two\n\n\n\n<tagged_files>\n* /a\n</tagged_files>",
      "<b>bold</b>\nline two",
    ],
    ["say <reminder>x</reminder> twice", "say <reminder>x</reminder> twice"],
    ["<p>kept</p>", "<p>kept</p>"],
  ])("stripWrappers reduces %j to the user's own words", (text, own) => {
    expect(stripWrappers(text)).toBe(own);
  });
});

const TOKEN = "echo-test-token";
const TURN_MS = 20_000;

/** Starts the bundled runtime with the home folder `home`. The caller has to kill `child`. */
async function startRuntime(home: string): Promise<{ port: number; child: ChildProcess }> {
  const platform = `${process.platform}-${process.arch}`;
  const sdk = createRequire(import.meta.url).resolve(`@github/copilot-sdk-${platform}/package.json`);
  const child = spawn(
    join(dirname(sdk), "prebuilds", platform, "copilot-runtime"),
    ["--headless", "--port", "0", "--host", "127.0.0.1", "--no-auto-login", "--no-auto-update"],
    {
      env: {
        PATH: process.env.PATH,
        HOME: home,
        COPILOT_HOME: home,
        COPILOT_CONNECTION_TOKEN: TOKEN,
        COPILOT_OFFLINE: "true",
      },
      stdio: ["ignore", "pipe", "ignore"],
    },
  );
  for await (const line of createInterface(child.stdout)) {
    const port = /listening on port (\d+)/.exec(line)?.[1];
    if (port !== undefined) return { port: Number(port), child };
  }
  throw new Error("the runtime ended before it listened");
}

describe("the echo model behind the real runtime", () => {
  it("the echo model gets the whole history from the runtime, even after another client resumed the session", async () => {
    const home = await mkdtemp(join(tmpdir(), "fleet-echo-"));
    await using model = new ModelProvider(
      {
        provider: { type: "echo" },
        runtime: { path: null, args: [], env: [] },
      },
      { env: {}, networkFolder: "/nowhere" },
    );
    const provider = await model.of("echo", {});
    const { port, child } = await startRuntime(home);
    const connect = () =>
      new CopilotClient({ connection: RuntimeConnection.forUri(`127.0.0.1:${port}`, { connectionToken: TOKEN }) });
    if (provider === null) throw new Error("no provider");
    const options = { model: "gpt-5", provider, onPermissionRequest: approveAll };
    try {
      const first = connect();
      const session = await first.createSession({ ...options, sessionId: "echo" });
      expect((await session.sendAndWait({ prompt: "hi" }, TURN_MS))?.data.content).toBe("[turn 1] hi");
      expect((await session.sendAndWait({ prompt: "again" }, TURN_MS))?.data.content).toBe("[turn 2] again");
      await first.stop();

      const second = connect();
      const resumed = await second.resumeSession("echo", { ...options, streaming: true });
      expect((await resumed.sendAndWait({ prompt: "and\n<b>more</b>" }, TURN_MS))?.data.content).toBe(
        "[turn 3] and\n<b>more</b>",
      );
      using took = new Stopwatch();
      await expect(resumed.sendAndWait({ prompt: "!fail on purpose" }, TURN_MS)).rejects.toThrow("on purpose");
      expect(took.ms).toBeLessThan(4_000);
      await second.stop();
    } finally {
      const exited = once(child, "exit");
      child.kill("SIGKILL");
      await exited;
      await removeFolder(home);
    }
  });
});
